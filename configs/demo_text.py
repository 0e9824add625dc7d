"""Masked tokens on 560,000 tokens of technical English, from text to a report, on two CPU cores.

Paper: BERT, arXiv 1810.04805, at toy size; rotary positions and gated MLPs as in ModernBERT.
Command: make demo-text
Cost: minutes of training on two CPU cores.
Published: none.
Measured: see README.md.
"""

from ml_collections import ConfigDict

from configs import hardware, text


def get_config(arg=None):
    config = ConfigDict()
    config.seed = 0
    config.duration = {"epochs": 10}
    config.batch_size = 32
    config.preprocessing = dict(name="text", tokenizer="sample:peps/tokenizer.json", max_length=128)
    config.data = dict(source=dict(name="tokens", path="sample:peps", split="train"))
    config.model = dict(
        name="bert",
        width=128,
        depth=4,
        mlp_dim=256,
        num_heads=4,
        vocab_size=6144,
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
    config.objective = dict(name="masked_language", masking=dict(rate=0.2))
    config.optimizer = text.adamw(2e-3, {"percent": 10}, b2=0.98, clip=1.0)
    test = dict(name="tokens", path="sample:peps", split="test")
    splits = {
        split: dict(name="sample", dataset="banking77", split=split) for split in ("train", "test")
    }
    config.evaluators = {
        "held_out": dict(name="masked_accuracy", test=test, batch_size=128, every={"percent": 20}),
        "intents": dict(
            name="linear_probe", **splits, batch_size=256, baselines=("bag_of_words", "random")
        ),
    }
    config.checkpoint = dict(every={"percent": 50}, keep_last=1)
    config.log = dict(every={"steps": 25})
    config.hardware = hardware.section()
    config.deadlines = {}
    return hardware.apply(config, arg)
