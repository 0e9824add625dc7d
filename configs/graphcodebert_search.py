"""GraphCodeBERT finds code by its description: every function of the batch against every text.

Paper: GraphCodeBERT, arXiv 2009.08366, section 5.1 and appendix B.1 (256 tokens of code, 64
  variables, 128 of text; batch 32, lr 2e-5, 10 epochs).
Command: python -m launch.local --config configs/graphcodebert_search.py --workdir runs/search
  (data.source.path: any tree of Python files; None is the running Python's standard library.)
Cost: not measured here; ten epochs of 4,564 pairs with Python 3.11's library.
Published: MRR .692 for Python, .713 over six languages, on CodeSearchNet.
Measured: not run. From random weights one layer of width 64, after 214 steps of 128 pairs without
  graphs, reaches MRR .530 on the 507 functions held out; TF-IDF of lower-cased words reaches .610.
Differences: cosines over a temperature of .05, as UniXcoder has it, in place of dot products; the
  first token in place of RoBERTa's pooler.
"""

from configs import hardware, text

PRETRAINED = "weights/graphcodebert-base"


def get_config(arg=None):
    config = text.base("code", text.ROBERTA, max_length=320)
    config.preprocessing.update(
        dict(name="code", tokenizer=f"{PRETRAINED}/tokenizer.json", max_nodes=64, max_text=128)
    )
    config.data.source = dict(name="python_code", path=None, stop=0.9)
    config.data.transforms = (dict(name="tokenize_texts", fields=("text", "code")),)
    config.batch_size = 32
    config.duration = {"epochs": 10}
    config.model = text.model("graphcodebert", "base", pool="cls")
    config.objective = dict(name="sentence_contrast", num_texts=2, temperature=0.05)
    config.init_from = dict(path=PRETRAINED, load=((r"encoder/.*", True),))
    config.optimizer = text.adamw(2e-5, {"percent": 0}, weight_decay=0.0, clip=1.0)
    config.evaluators = {
        "search": dict(
            name="retrieval",
            test=dict(name="python_code", path=None, start=0.9),
            query="text",
            document="code",
            every={"epochs": 1},
        )
    }
    return hardware.apply(config, arg)
