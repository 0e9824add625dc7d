"""BERT-Base, phase 1: 900,000 steps of 128 tokens.

Paper: BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805, section 3.1.
Command: python -m launch.local --config configs/bert_base_phase1.py --workdir runs/bert_base_phase1
Cost: the paper's 1M steps take 4 days on 16 TPU chips.
Published: MNLI 84.6/83.4, CoLA 52.1 (test); 110M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.bert("base", phase=1)
    return hardware.apply(config, arg)
