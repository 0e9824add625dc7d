"""CodeBERT: masked tokens of documentation and code together, from RoBERTa's weights.

Paper: CodeBERT, arXiv 2002.08155, sections 3.4 and 3.5 (masked-token objective alone).
Command: python -m launch.local --config configs/codebert.py --workdir runs/codebert
  (data.source.path: any tree of Python files; None is the running Python's standard library.)
Cost: the paper trains 100,000 steps of 2,048 rows on 16 V100 (600 minutes for 1,000 batches).
Published: code search MRR .693 (six languages, both objectives, CodeSearchNet).
Measured: not run.
"""

from configs import hardware, text

PRETRAINED = "weights/roberta-base"


def get_config(arg=None):
    config = text.base("code", text.ROBERTA, max_length=512)
    config.preprocessing.tokenizer = f"{PRETRAINED}/tokenizer.json"
    config.data.source = dict(name="python_code", path=None)
    config.data.transforms = (dict(name="bimodal"),)
    config.batch_size = 2048
    config.duration = {"steps": 100_000}
    config.model = text.model("roberta", "base", pool="none")
    config.objective = dict(name="masked_language", masking=dict(rate=0.15))
    config.init_from = dict(path=PRETRAINED, load=((r"encoder/.*", True),), fresh=("head/.*",))
    config.optimizer = text.adamw(5e-4, {"steps": 10_000}, b2=0.98, eps=1e-6)
    return hardware.apply(config, arg)
