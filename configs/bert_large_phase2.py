"""BERT-Large, phase 2: the last 100,000 steps, of 512 tokens.

Paper: BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805, section 3.1.
Command: python -m launch.local --config configs/bert_large_phase2.py
  --workdir runs/bert_large_phase2
Cost: the paper's 1M steps take 4 days on 64 TPU chips.
Published: MNLI 86.6, CoLA 60.6, SQuAD 1.1 90.9 F1 (dev); 340M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.bert("large", phase=2)
    return hardware.apply(config, arg)
