"""DeBERTa-v3-large: disentangled attention, replaced-token detection.

Paper: DeBERTaV3, arXiv 2111.09543, sections 4 and 5.
Command: python -m launch.local --config configs/deberta_v3_large.py --workdir runs/deberta_v3_large
Cost: not measured here.
Published: MNLI 91.8 (dev); 304M parameters without the vocabulary's.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.deberta("large", lr=3e-4)
    return hardware.apply(config, arg)
