"""ALBERT-xxlarge: shared layers, factorised embeddings, sentence order.

Paper: ALBERT: A Lite BERT, arXiv 1909.11942, sections 3 and 4.1.
Command: python -m launch.local --config configs/albert_xxlarge.py --workdir runs/albert_xxlarge
Cost: not measured here.
Published: 235M parameters; MNLI 90.8 (dev, 1.5M steps).
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.albert("xxlarge")
    return hardware.apply(config, arg)
