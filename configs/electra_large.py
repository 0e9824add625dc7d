"""ELECTRA-Large: replaced-token detection, a quarter of the tokens, 400,000 steps.

Paper: ELECTRA: Pre-training Text Encoders as Discriminators, arXiv 2003.10555, table 6.
Command: python -m launch.local --config configs/electra_large.py --workdir runs/electra_large
Cost: not measured here.
Published: MNLI 90.5 (dev, 400,000 steps), 90.9 (1.75M steps); 335M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.electra(
        "large", rows=2048, steps=400_000, lr=2e-4, length=512, width=0.25, rate=0.25
    )
    return hardware.apply(config, arg)
