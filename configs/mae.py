"""What the rows of the MAE paper have in common (arXiv 2111.06377, appendix A.1, tables 8 to 10).

Not an experiment: mae_*_in1k.py are.
"""

from ml_collections import ConfigDict

from configs.common import (
    IMAGENET_CLASSES,
    accuracy,
    feature_scores,
    imagenet_base,
    rand_augment_m9,
)


def pretraining(variant: str, epochs: int) -> ConfigDict:
    """Table 8: AdamW, base lr 1.5e-4 at batch 256, 40 epochs of warm-up, crops and flips only."""
    config = imagenet_base()
    config.batch_size = 4096
    config.duration = {"epochs": epochs}
    config.data.transforms = (
        dict(name="random_resized_crop", scale=(0.2, 1.0)),
        dict(name="random_flip"),
    )
    config.model = dict(
        name="vit",
        variant=variant,
        positions="sincos2d",
        sincos="mae",
        pool="cls",
        weight_init="mae",
        scan=False,
        remat="none",
    )
    config.objective = dict(
        name="masked_image",
        mask_ratio=0.75,
        decoder=dict(width=512, depth=8, num_heads=16),
        norm_pix=True,
    )
    config.optimizer = dict(
        name="adamw",
        lr=1.5e-4 * config.batch_size / 256,
        schedule=dict(name="cosine", warmup={"epochs": 40}),
        b1=0.9,
        b2=0.95,
        weight_decay=0.05,
        # The authors' code spares vectors only, and stores its tokens as [1, 1, D].
        decay_rules=((r".*kernel|encoder/cls_token|decoder/mask_token", 1.0),),
    )
    config.evaluators = {
        "reconstruction": dict(
            name="reconstruction",
            test=accuracy()["test"],
            every={"percent": 5},
        ),
        **feature_scores(every={"percent": 10}),
    }
    config.checkpoint.keep_every = {"epochs": 100}
    return config


def fine_tuning(
    variant: str, pretrained: str, epochs: int, base_lr: float, layer_decay: float, drop_path: float
) -> ConfigDict:
    """Table 9: layer-wise decay, RandAugment(9, .5), mixup .8, cutmix 1, smoothing .1, mean pool.

    Positions start at the fixed sin-cos table of pre-training and are then learned, as the
    authors' code does it.
    """
    config = imagenet_base()
    config.batch_size = 1024
    config.duration = {"epochs": epochs}
    config.data.transforms = (
        dict(name="random_resized_crop"),
        dict(name="random_flip"),
        rand_augment_m9(),
        dict(name="random_erasing", probability=0.25),
    )
    config.model = dict(
        name="vit",
        variant=variant,
        positions="learned",
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
        head_init=2e-5,
    )
    lr = base_lr * config.batch_size / 256
    # The final norm is new: the old one normalised tokens, this one a pooled vector.
    config.init_from = dict(
        path=pretrained,
        load=((r"encoder/(?!norm/|positions).*", True),),
        fresh=("encoder/norm/.*", "encoder/positions", "head/.*"),
    )
    config.optimizer = dict(
        name="adamw",
        lr=lr,
        schedule=dict(name="cosine", warmup={"epochs": 5}, end=1e-6 / lr),
        b1=0.9,
        b2=0.999,
        weight_decay=0.05,
        layer_decay=layer_decay,
    )
    config.evaluators = {"validation": accuracy(every={"epochs": 5})}
    config.checkpoint.best_metric = "eval/validation/accuracy"
    return config


def linear_probing(variant: str, pretrained: str) -> ConfigDict:
    """Table 10: LARS on a frozen encoder, batch 16384, batch norm without affine, no decay."""
    config = imagenet_base()
    config.batch_size = 16384
    config.duration = {"epochs": 90}
    config.data.transforms = (
        dict(name="random_resized_crop"),
        dict(name="random_flip"),
    )
    config.model = dict(
        name="vit",
        variant=variant,
        positions="sincos2d",
        sincos="mae",
        pool="cls",
        weight_init="mae",
        scan=False,
        remat="none",
    )
    config.objective = dict(
        name="classification", num_classes=IMAGENET_CLASSES, linear_probe=True, head_init=0.01
    )
    config.init_from = dict(path=pretrained, load=((r"encoder/.*", True),), fresh=("head/.*",))
    config.optimizer = dict(
        name="lars",
        lr=0.1 * config.batch_size / 256,
        schedule=dict(name="cosine", warmup={"epochs": 10}),
        momentum=0.9,
        weight_decay=0.0,
        frozen=("encoder/.*",),
    )
    config.evaluators = {"validation": accuracy(every={"epochs": 5})}
    return config
