"""ELECTRA-Base: replaced-token detection, 766,000 steps.

Paper: ELECTRA: Pre-training Text Encoders as Discriminators, arXiv 2003.10555, table 6.
Command: python -m launch.local --config configs/electra_base.py --workdir runs/electra_base
Cost: the paper's takes 4 days on 16 TPU v3.
Published: MNLI 88.8 (dev); 110M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.electra(
        "base", rows=256, steps=766_000, lr=2e-4, length=512, width=1 / 3, rate=0.15
    )
    return hardware.apply(config, arg)
