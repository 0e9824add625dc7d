"""ELECTRA-Small: replaced-token detection on one GPU.

Paper: ELECTRA: Pre-training Text Encoders as Discriminators, arXiv 2003.10555, table 6.
Command: python -m launch.local --config configs/electra_small.py --workdir runs/electra_small
Cost: the paper's takes 4 days on one V100.
Published: MNLI 81.3 (dev); 14M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.electra(
        "small", rows=128, steps=1_000_000, lr=5e-4, length=128, width=0.25, rate=0.15
    )
    return hardware.apply(config, arg)
