"""ViT-22B on JFT-4B, 177,000 steps of batch 65,536 (about three epochs).

Paper: arXiv 2302.05442, sections 2 and 4.1; 1,024 TPU v4 chips.
Command: python -m launch.tpu --config configs/vit_22b_jft.py --workdir gs://bucket/vit_22b
  (JFT-4B is not public: point data.source at pictures with up to 30,000 labels of your own.)
Cost: see docs/plans.md.
Published: 21,743 M parameters in the blocks; 1,150 tokens a second and core, 54.9 % MFU; 10-shot
  and linear probes in tables 2 to 4, such as 89.5 top-1 on ImageNet from frozen features.
Measured: not run.

Not in the paper and taken from its predecessor (arXiv 2106.04560): Adafactor with a bfloat16 first
moment, clipping at 1, and the sigmoid loss's bias.
"""

import math

from configs import hardware
from configs.common import feature_scores, imagenet_base

CLASSES = 30_000
PICTURES = 4_000_000_000


def get_config(arg=None):
    config = imagenet_base()
    config.batch_size = 65_536
    config.duration = {"steps": 177_000}
    config.preprocessing.mean = (0.5, 0.5, 0.5)
    config.preprocessing.std = (0.5, 0.5, 0.5)
    config.data.source = dict(name="tfds", dataset="jft", split="train", data_dir=None)
    config.data.examples_per_epoch = PICTURES
    config.data.transforms = (
        dict(name="random_resized_crop", scale=(0.05, 1.0), interpolation="bilinear"),
        dict(name="random_flip"),
    )
    config.model = dict(
        name="vit",
        variant="22B/14",
        positions="learned",
        class_token=False,
        pool="map",
        parallel=True,
        qk_norm=True,
        qkv_bias=False,
        norm_bias=False,
        weight_init="big_vision",
        mlp="gelu_tanh",
        scan=True,
        remat="full",
    )
    config.objective = dict(
        name="classification",
        num_classes=CLASSES,
        loss="sigmoid",
        head_bias=-math.log(CLASSES),
    )
    config.optimizer = dict(
        name="adafactor",
        lr=1e-3,
        schedule=dict(name="rsqrt", warmup={"steps": 10_000}, cooldown={"steps": 30_000}),
        b1=0.9,
        mu_dtype="bfloat16",
        weight_decay=0.03,
        decay_convention="independent",
        decay_rules=((r"head/kernel", 100.0), (r".*kernel", 1.0)),  # 3 on the head
        clip=1.0,
    )
    config.evaluators = {"few_shot": feature_scores(every={"steps": 10_000})["few_shot"]}
    config.checkpoint.every = {"steps": 1_000}
    return hardware.apply(config, arg)
