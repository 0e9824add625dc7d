"""RoBERTa-Large on 160 GB of text, 500,000 steps of 8,192 rows.

Paper: RoBERTa: A Robustly Optimized BERT Pretraining Approach, arXiv 1907.11692, table 9.
Command: python -m launch.local --config configs/roberta_large.py --workdir runs/roberta_large
Cost: the paper's first 100,000 steps take about a day on 1,024 V100.
Published: MNLI 90.2, SST-2 96.4, CoLA 68.0, STS-B 92.4 (dev); 355M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.roberta("large", lr=4e-4, warmup=30_000)
    return hardware.apply(config, arg)
