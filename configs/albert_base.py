"""ALBERT-base: shared layers, factorised embeddings, sentence order.

Paper: ALBERT: A Lite BERT, arXiv 1909.11942, sections 3 and 4.1.
Command: python -m launch.local --config configs/albert_base.py --workdir runs/albert_base
Cost: not measured here.
Published: 12M parameters; 82.3 on average over five tasks (version 2, dev).
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.albert("base")
    return hardware.apply(config, arg)
