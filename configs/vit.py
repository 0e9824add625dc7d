"""What the supervised ViT rows have in common. Not an experiment: vit_*_in1k.py are."""

from ml_collections import ConfigDict

from configs.common import IMAGENET_CLASSES, accuracy, imagenet_base, rand_augment_m9


def better_plain(variant: str, epochs: int) -> ConfigDict:
    """The "better plain ViT" recipe (arXiv 2205.01580, section 2 and appendix A).

    Batch 1024, Adam with a bfloat16 first moment, lr 1e-3, weight decay 1e-4 apart from the lr,
    10,000 steps of warm-up, cosine to 0, clip 1, RandAugment(2, 10), mixup .2, mean pooling.
    """
    config = imagenet_base()
    config.batch_size = 1024
    config.duration = {"epochs": epochs}
    config.preprocessing.mean = (0.5, 0.5, 0.5)
    config.preprocessing.std = (0.5, 0.5, 0.5)
    config.data.transforms = (
        dict(
            name="random_resized_crop",
            scale=(0.05, 1.0),
            interpolation="bilinear",
        ),
        dict(name="random_flip"),
        dict(name="rand_augment", num_ops=2, magnitude=10),
    )
    config.model = dict(
        name="vit",
        variant=variant,
        positions="sincos2d",
        sincos="big_vision",
        class_token=False,
        pool="mean",
        weight_init="big_vision",
        mlp="gelu_tanh",  # flax's own default, which the authors' code trains with
        scan=False,
        remat="none",
    )
    config.objective = dict(name="classification", num_classes=IMAGENET_CLASSES, mixup=0.2)
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        schedule=dict(name="cosine", warmup={"steps": 10_000}),
        mu_dtype="bfloat16",
        weight_decay=1e-4,
        decay_convention="independent",
        clip=1.0,
    )
    config.evaluators = {"validation": accuracy(every={"percent": 5})}
    return config


def from_scratch(variant: str, epochs: int, drop_path: float) -> ConfigDict:
    """MAE's supervised baseline (arXiv 2111.06377, appendix A.2, table 11)."""
    config = imagenet_base()
    config.batch_size = 4096
    config.duration = {"epochs": epochs}
    config.data.transforms = (
        dict(name="random_resized_crop"),
        dict(name="random_flip"),
        rand_augment_m9(),
    )
    config.model = dict(
        name="vit",
        variant=variant,
        positions="sincos2d",
        sincos="mae",
        pool="mean",
        norm_after_pool=True,
        drop_path=drop_path,
        weight_init="mae",
        scan=False,
        remat="none",
    )
    config.objective = dict(
        name="classification",
        num_classes=IMAGENET_CLASSES,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
    )
    config.optimizer = dict(
        name="adamw",
        lr=1e-4 * config.batch_size / 256,
        schedule=dict(name="cosine", warmup={"epochs": 20}),
        b1=0.9,
        b2=0.95,
        weight_decay=0.3,
    )
    config.ema = 0.9999
    config.evaluators = {"validation": accuracy(every={"percent": 5})}
    return config
