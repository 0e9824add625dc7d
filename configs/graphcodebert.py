"""GraphCodeBERT: masked tokens, edges of the data flow, and which tokens variables are.

Paper: GraphCodeBERT, arXiv 2009.08366, section 4 and appendix A.
Command: python -m launch.local --config configs/graphcodebert.py --workdir runs/graphcodebert
  (data.source.path: any tree of Python files; None is the running Python's standard library.)
Cost: the paper trains 200,000 batches on 32 V100 in 83 hours.
Published: code search MRR .713 (six languages, CodeSearchNet).
Measured: not run.
"""

from configs import hardware, text

PRETRAINED = "weights/codebert-base"
NODES = 128  # beside 512 tokens


def get_config(arg=None):
    config = text.base("code", text.ROBERTA, max_length=512 + NODES)
    config.preprocessing.tokenizer = f"{PRETRAINED}/tokenizer.json"
    config.data.source = dict(name="python_code", path=None)
    config.data.transforms = (dict(name="data_flow", max_nodes=NODES),)
    config.batch_size = 1024
    config.duration = {"steps": 200_000}
    config.model = text.model("graphcodebert", "base", pool="none")
    config.objective = dict(name="data_flow", masking=dict(rate=0.15), max_nodes=NODES)
    config.init_from = dict(path=PRETRAINED, load=((r"encoder/.*", True),), fresh=("head/.*",))
    config.optimizer = text.adamw(2e-4, {"steps": 10_000}, b2=0.98, eps=1e-6)
    return hardware.apply(config, arg)
