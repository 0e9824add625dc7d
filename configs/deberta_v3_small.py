"""DeBERTa-v3-small: disentangled attention, replaced-token detection.

Paper: DeBERTaV3, arXiv 2111.09543, sections 4 and 5.
Command: python -m launch.local --config configs/deberta_v3_small.py --workdir runs/deberta_v3_small
Cost: not measured here.
Published: MNLI 88.2 (dev).
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.deberta("small", lr=6e-4)
    return hardware.apply(config, arg)
