"""LiT B/16: a text tower learns to read a locked ViT of ImageNet-21k, on public pairs.

Paper: LiT: Zero-Shot Transfer with Locked-image text Tuning, arXiv 2111.07991, on CC12M and
  YFCC100M-CLIP.
Command: python -m launch.local --config configs/lit_b16.py --workdir runs/lit_b16
  init_from.path: a ViT-B/16, such as timm's vit_base_patch16_224.augreg_in21k.
Cost: not measured here; 60,000 steps of 16,384 pairs.
Published: 73.9 zero-shot on ImageNet, with a text tower that starts as BERT-Base.
Measured: not run.
Differences: the text tower starts at random; data of two corpora lie in one folder.
"""

import math

from configs import hardware, image_text, text


def get_config(arg=None):
    texts = dict(max_length=16, vocabulary=text.BERT)
    config = image_text.base("cc12m_yfcc100m", 16_384, 224, texts)
    config.duration = {"steps": 60_000}
    config.data.transforms = (
        dict(name="random_resized_crop"),
        dict(name="random_flip"),
        dict(name="rand_augment", num_ops=2, magnitude=10),
        dict(name="tokenize"),
    )
    config.model = dict(
        name="towers",
        image=image_text.tower("vit", "B/16"),
        text=image_text.tower("bert", "base", pool="cls"),
        embedding_dim=768,
        text_projection="linear_bias",
        logit_scale=math.log(10),
    )
    image_text.locked(config, "weights/vit_base_patch16_224.augreg_in21k")
    config.objective = dict(name="softmax_contrast")
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        schedule=dict(name="cosine", warmup={"percent": 3}),
        weight_decay=1e-2,
        decay_convention="independent",
        clip=1.0,
    )
    return hardware.apply(config, arg)
