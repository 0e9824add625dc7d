"""RoBERTa-Base on 160 GB of text, 500,000 steps of 8,192 rows.

Paper: RoBERTa: A Robustly Optimized BERT Pretraining Approach, arXiv 1907.11692, table 9.
Command: python -m launch.local --config configs/roberta_base.py --workdir runs/roberta_base
Cost: not measured here.
Published: MNLI 87.6, SST-2 94.8, CoLA 63.6, STS-B 91.2 (dev).
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.roberta("base", lr=6e-4, warmup=24_000)
    return hardware.apply(config, arg)
