"""What experiments on vectors of sentences have in common. Not an experiment: simcse_*.py are."""

from ml_collections import ConfigDict

from configs import text

PRETRAINED = "weights/bert-base-uncased"  # a run, or a Hugging Face directory


def base(corpus: str, max_length: int, fields: tuple[str, ...]) -> ConfigDict:
    """A pretrained BERT-Base on texts of a jsonl or csv file, each of which becomes a vector."""
    config = text.base(corpus, text.BERT, max_length)
    config.preprocessing.tokenizer = f"{PRETRAINED}/tokenizer.json"
    kept = tuple(name for name in fields if name not in ("text", "other"))
    config.data.source = dict(name="text", path=f"data/{corpus}/train.jsonl", fields=kept)
    config.data.transforms = (dict(name="tokenize_texts", fields=fields),)
    config.duration = {"epochs": 1}
    config.init_from = dict(path=PRETRAINED, load=((r"encoder/.*", True),), fresh=("head/.*",))
    config.evaluators = {
        "sts": dict(
            name="sts", test=dict(name="text", path="data/stsb/test.csv"), every={"percent": 10}
        )
    }
    return config


def simcse(corpus: str, examples: int, fields: tuple[str, ...], rows: int, lr: float) -> ConfigDict:
    """Section 5.1 and appendix A of arXiv 2104.08821: temperature .05, 32 tokens, first token."""
    config = base(corpus, 32, fields)
    config.data.examples_per_epoch = examples
    config.batch_size = rows
    config.model = text.model("bert", "base", pool="cls")
    config.objective = dict(
        name="sentence_contrast", num_texts=len(fields), temperature=0.05, projection=True
    )
    config.optimizer = text.adamw(lr, {"steps": 0}, weight_decay=0.0, clip=1.0)
    return config
