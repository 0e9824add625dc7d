"""SigLIP on 1,529 emoji with their names: from pairs to a contact sheet, on two CPU cores.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, at toy size.
Command: make demo-clip
Cost: 6.6 minutes of two CPU cores, the install included.
Published: none.
Measured: of 383 emoji unseen in training, 8.1 % find their name first and 5.2 % of the names their
  emoji; chance is .26 %.

The argument 'lit' locks the encoder that make demo has trained on clothes and trains the text tower
alone (LiT, arXiv 2111.07991); 'small' trains the same two towers from scratch.
"""

import math

from ml_collections import ConfigDict

from configs import demo, hardware, image_text, sweeps


def get_config(arg=None):
    names = (arg or "").split(",")
    config = ConfigDict()
    config.seed = 0
    config.duration = {"epochs": 60}
    config.batch_size = 256
    config.preprocessing = dict(
        name="image_text",
        image=dict(image_size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0),
        text=dict(
            tokenizer="sample:emoji/tokenizer.json",
            max_length=24,
            token_types=False,
            lowercase=True,
            strip_punctuation=True,
        ),
    )
    train = dict(name="sample", dataset="emoji", split="train")
    test = dict(name="sample", dataset="emoji", split="test")
    config.data = dict(
        source=train,
        transforms=(
            dict(name="random_resized_crop", scale=(0.6, 1.0)),
            dict(name="tokenize"),
        ),
    )
    config.model = dict(
        name="towers",
        image=dict(
            name="vit",
            patch_size=8,
            width=128,
            depth=4,
            mlp_dim=512,
            num_heads=4,
            class_token=False,
            pool="map",
            mlp="gelu_tanh",
        ),
        text=dict(
            name="clip_text",
            width=128,
            depth=2,
            mlp_dim=512,
            num_heads=4,
            vocab_size=2048,
            max_length=24,
            causal=False,
            pool="mean",
            mlp="gelu_tanh",
            norm_eps=1e-6,
        ),
        text_projection="linear_bias",
        embedding_dim=128,
        logit_scale=math.log(10),
        logit_bias=-6.0,
    )
    if {"small", "lit"} & set(names):
        _as_demo(config)
    if "lit" in names:
        image_text.locked(config, "runs/demo")
        config.init_from.fresh += (r"encoder/image_projection/.*",)
    # "flag: Aruba" and "flag: Angola" differ; "Mrs. Claus" may be there twice.
    config.objective = dict(name="sigmoid_contrast", duplicates=True)
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        schedule=dict(name="cosine", warmup={"percent": 10}),
        b2=0.95,
        weight_decay=0.1,
        clip=1.0,
        lr_rules=((r"encoder/logit_.*", 10.0), (r".*", 1.0)),
    )
    config.evaluators = {
        "held_out": dict(
            name="image_text_retrieval",
            test=test,
            captions=1,
            batch_size=128,
            every={"percent": 20},
        ),
        "seen": dict(
            name="image_text_retrieval",
            test=train,
            captions=1,
            batch_size=128,
            examples=0,
            every={"percent": 100},
        ),
    }
    config.checkpoint = dict(every={"percent": 50}, keep_last=1)
    config.log = dict(every={"steps": 10})
    config.hardware = hardware.section()
    config.deadlines = {}
    return hardware.apply(config, ",".join(n for n in names if n not in ("small", "lit")))


def _as_demo(config):
    """With the image tower of configs/demo.py, and what it expects of images."""
    other = demo.get_config()
    config.preprocessing.image = {k: v for k, v in other.preprocessing.items() if k != "name"}
    config.model.image = other.model
    config.model.image_projection = "linear_bias"


def sweep():
    """Does the sigmoid loss gain on the softmax as batches get smaller, as its paper says?"""
    axes = {
        "objective.name": ("sigmoid_contrast", "softmax_contrast"),
        "batch_size": (64, 256, 1024),
        "seed": (0, 1, 2),
    }
    return sweeps.grid(axes, metric="eval/held_out/image_to_text@10")
