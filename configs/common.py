"""Pieces that several experiments share; each call returns fresh sections to change at will."""

from ml_collections import ConfigDict

from configs import hardware

IMAGENET_TRAIN = 1_281_167
IMAGENET_CLASSES = 1000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet(split: str) -> ConfigDict:
    """ImageNet-1k as TensorFlow Datasets prepares it; --config.data.source.data_dir says where."""
    return ConfigDict(dict(name="tfds", dataset="imagenet2012", split=split, data_dir=None))


def imagenet_base(size: int = 224) -> ConfigDict:
    """The fields that every ImageNet experiment has: data, picture format, checkpoints, logs."""
    return ConfigDict(
        dict(
            seed=0,
            preprocessing=dict(
                name="image",
                image_size=(size, size),
                channels=3,
                mean=IMAGENET_MEAN,
                std=IMAGENET_STD,
                interpolation="bicubic",
                crop_fraction=0.875,
            ),
            data=dict(
                source=imagenet("train"),
                transforms=(),
                examples_per_epoch=IMAGENET_TRAIN,
                threads=4,
                processes=8,
            ),
            evaluators=dict(),
            checkpoint=dict(every={"epochs": 1}, keep_last=2),
            log=dict(every={"steps": 50}),
            hardware=hardware.section(),
            deadlines=dict(),
        )
    )


def accuracy(**fields) -> dict:
    """Top-1 and top-5 accuracy on the validation split."""
    return dict(name="classification", test=imagenet("validation"), batch_size=1024, **fields)


def feature_scores(**fields) -> dict:
    """Scores of a frozen encoder: nearest neighbours, and ten-shot ridge regression."""
    splits = dict(train=imagenet("train"), test=imagenet("validation"), batch_size=1024)
    return {
        "knn": dict(name="knn", **splits, **fields),
        "few_shot": dict(name="few_shot", **splits, **fields),
    }


def rand_augment_m9() -> dict:
    """RandAugment(9, .5) as timm's rand-m9-mstd0.5-inc1: each operation at probability .5."""
    return dict(
        name="rand_augment",
        num_ops=2,
        magnitude=9,
        magnitude_std=0.5,
        increasing=True,
        probability=0.5,
    )
