"""DeBERTa-v3-base: disentangled attention, replaced-token detection.

Paper: DeBERTaV3, arXiv 2111.09543, sections 4 and 5.
Command: python -m launch.local --config configs/deberta_v3_base.py --workdir runs/deberta_v3_base
Cost: not measured here.
Published: MNLI 90.6 (dev); 184M parameters, 98M of them the vocabulary's.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.deberta("base", lr=6e-4)
    return hardware.apply(config, arg)
