"""SimCSE without labels: a sentence is its own counterpart, under other dropout.

Paper: SimCSE: Simple Contrastive Learning of Sentence Embeddings, arXiv 2104.08821, table 5.
Command: python -m launch.local --config configs/simcse_bert_base.py --workdir runs/simcse
Cost: not measured here; 15,625 steps of 64 sentences of 32 tokens.
Published: 76.25 on average over seven STS tasks (Spearman, times 100); the seed moves it by 2.
Measured: not run.
"""

from configs import hardware, sentence


def get_config(arg=None):
    config = sentence.simcse("wiki1m", 1_000_000, ("text",), rows=64, lr=3e-5)
    return hardware.apply(config, arg)
