"""ALBERT-large: shared layers, factorised embeddings, sentence order.

Paper: ALBERT: A Lite BERT, arXiv 1909.11942, sections 3 and 4.1.
Command: python -m launch.local --config configs/albert_large.py --workdir runs/albert_large
Cost: not measured here.
Published: 18M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.albert("large")
    return hardware.apply(config, arg)
