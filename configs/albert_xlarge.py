"""ALBERT-xlarge: shared layers, factorised embeddings, sentence order.

Paper: ALBERT: A Lite BERT, arXiv 1909.11942, sections 3 and 4.1.
Command: python -m launch.local --config configs/albert_xlarge.py --workdir runs/albert_xlarge
Cost: not measured here.
Published: 60M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.albert("xlarge")
    return hardware.apply(config, arg)
