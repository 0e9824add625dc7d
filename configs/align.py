"""ALIGN: EfficientNet-L2 and BERT-Large on noisy pairs.

Paper: Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision,
  arXiv 2102.05918, section 4.2 (numbers from memory).
Command: python -m launch.local --config configs/align.py --workdir runs/align
  The argument 'b7' trains EfficientNet-B7 and BERT-Base, whose weights others have published.
Cost: the paper: 1.2 M steps of 16,384 pairs on 1,024 TPU v3 cores.
Published: 76.4 zero-shot on ImageNet, with 1.8 billion pairs that are not public.
Measured: not run.
Differences: the text's vocabulary is BERT's; batch statistics are of the whole batch.
"""

from configs import hardware, image_text, text


def get_config(arg=None):
    names = (arg or "").split(",")
    small = "b7" in names
    config = image_text.base("coyo700m", 16_384, 289, dict(max_length=64, vocabulary=text.BERT))
    config.duration = {"steps": 1_200_000}
    config.preprocessing.image.crop_fraction = 289 / 346
    config.data.transforms = (
        dict(name="random_resized_crop", scale=(0.7, 1.0)),
        dict(name="random_flip"),
        dict(name="tokenize"),
    )
    config.model = dict(
        name="towers",
        image=dict(
            name="efficientnet",
            variant="B7" if small else "L2",
            head=False,
            padding="late",
            drop_path=0.2,
        ),
        text=image_text.tower("bert", "base" if small else "large", pool="cls"),
        embedding_dim=640 if small else 1376,
        text_projection="linear_bias",
        logit_scale=0.0,
    )
    config.objective = dict(name="softmax_contrast", label_smoothing=0.1)
    config.optimizer = text.adamw(1e-3, {"steps": 10_000}) | {"name": "lamb", "weight_decay": 1e-5}
    return hardware.apply(config, ",".join(name for name in names if name != "b7"))
