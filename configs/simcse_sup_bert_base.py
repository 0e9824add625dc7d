"""SimCSE on natural-language inference: entailments are counterparts, contradictions negatives.

Paper: SimCSE: Simple Contrastive Learning of Sentence Embeddings, arXiv 2104.08821, table 5.
Command: python -m launch.local --config configs/simcse_sup_bert_base.py --workdir runs/simcse_sup
  (data/nli/train.jsonl has the columns text, other and negative.)
Cost: not measured here; three epochs of 275,601 triples, 512 a step.
Published: 81.57 on average over seven STS tasks (Spearman, times 100).
Measured: not run.
"""

from configs import hardware, sentence


def get_config(arg=None):
    fields = ("text", "other", "negative")
    config = sentence.simcse("nli", 275_601, fields, rows=512, lr=5e-5)
    config.duration = {"epochs": 3}
    config.objective.projection = True
    return hardware.apply(config, arg)
