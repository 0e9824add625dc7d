"""Sentence-BERT: pairs of natural-language inference classified from (u, v, |u - v|).

Paper: Sentence-BERT, arXiv 1908.10084, section 3.
Command: python -m launch.local --config configs/sbert_nli_bert_base.py --workdir runs/sbert
  (data/nli_pairs/train.jsonl has the columns text, other and label.)
Cost: the paper trains for less than 20 minutes on one V100 (with SmartBatching).
Published: 74.89 on average over seven STS tasks (SBERT-NLI-base, Spearman, times 100).
Measured: not run.
"""

from configs import hardware, sentence, text


def get_config(arg=None):
    config = sentence.base("nli_pairs", 128, ("text", "other"))
    config.data.examples_per_epoch = 942_069
    config.batch_size = 16
    config.model = text.model("bert", "base", pool="mean")
    config.objective = dict(name="sentence_pair", num_classes=3)
    config.optimizer = text.adamw(2e-5, {"percent": 10}, clip=1.0)
    return hardware.apply(config, arg)
