"""Masked tokens on bundled English, from text to a report, on two CPU cores.

Paper: BERT, arXiv 1810.04805, at toy size; rotary positions and gated MLPs as in ModernBERT.
Command: make demo-text
Cost: see README.
Published: BERT-Large, frozen: 67.6 % with 10 labels an intent and 80.1 % with 30, from memory of
  arXiv 2003.04807.
Measured: see README.

A quarter of the rows are packed from Python's enhancement proposals, the others from questions to a
bank, without their labels. The probe tells the 77 intents of such questions apart, from 10 and from
30 labelled ones each, as that paper does.
"""

from ml_collections import ConfigDict

from configs import hardware, text


def get_config(arg=None):
    config = ConfigDict()
    config.seed = 0
    config.duration = {"steps": 850}
    config.batch_size = 64
    config.preprocessing = dict(
        name="text", tokenizer="sample:peps/tokenizer.json", max_length=64, token_types=False
    )
    proposals = dict(name="tokens", path="sample:peps", split="train")
    questions = dict(name="tokens", path="sample:banking77", split="train")
    config.data = dict(source=dict(name="mixture", sources=(proposals, questions), weights=(1, 3)))
    config.model = dict(
        name="bert",
        width=192,
        depth=4,
        mlp_dim=384,
        num_heads=4,
        vocab_size=6144,
        max_length=64,
        positions="rotary",
        num_token_types=0,
        pre_norm=True,
        mlp="geglu",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        dropout=0.0,
        attention_dropout=0.0,
        pool="mean",
    )
    # Scores with a table of their own: tied ones push rare words together before they are learnt.
    config.objective = dict(name="masked_language", masking=dict(rate=0.2), head=dict(tied=False))
    config.optimizer = text.adamw(2e-3, {"percent": 10}, b2=0.98, clip=1.0)
    config.optimizer.decay_rules = ((r".*(kernel|words)", 1.0),)
    test = dict(name="tokens", path="sample:peps", split="test")
    splits = {
        split: dict(name="sample", dataset="banking77", split=split) for split in ("train", "test")
    }
    config.evaluators = {
        "held_out": dict(name="masked_accuracy", test=test, batch_size=64, every={"percent": 20}),
        "intents": dict(
            name="few_shot",
            **splits,
            feature=("mean", 0, 1, 2),
            shots=(10, 30),
            batch_size=256,
            baselines=("bag_of_words", "random"),
        ),
    }
    config.checkpoint = dict(every={"percent": 50}, keep_last=1)
    config.log = dict(every={"steps": 25})
    config.hardware = hardware.section()
    config.deadlines = {}
    return hardware.apply(config, arg)
