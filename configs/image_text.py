"""Pieces that experiments on images with texts share; each call returns fresh sections.

Pairs are not downloaded: data.source.path is a folder of WebDataset shards, an image and its
caption under one name (000.jpg, 000.txt), as img2dataset writes them; a table of file names and
captions is dict(name='pairs', path='captions.parquet'). Zero-shot accuracy is that on ImageNet's
validation split, with names of its classes and templates, one on a line, in data/imagenet.
"""

import math

from ml_collections import ConfigDict

from configs import hardware, text
from configs.common import imagenet

CLIP_WORDS = dict(size=49408, pad_id=49407, unk_id=49407, cls_id=49406, sep_id=49407, mask_id=49407)
SIGLIP_WORDS = dict(size=32000, pad_id=1, unk_id=2, cls_id=1, sep_id=1, mask_id=2)
GEMMA_WORDS = dict(size=256_000, pad_id=0, unk_id=3, cls_id=2, sep_id=1, mask_id=4)
# Where a cosine is after 80 % of its length, as a share of the peak.
LAST_FIFTH = (1 + math.cos(0.8 * math.pi)) / 2
# Tables decay, as in PyTorch's CLIPs, where whatever has two axes does.
DECAY_TABLES = ((r".*(kernel|words|positions)", 1.0),)


def base(corpus: str, batch_size: int, image_size: int, texts: dict) -> ConfigDict:
    """The fields that every experiment on images with texts has."""
    return ConfigDict(
        dict(
            seed=0,
            batch_size=batch_size,
            preprocessing=dict(
                name="image_text",
                image=dict(
                    image_size=(image_size, image_size),
                    mean=(0.5, 0.5, 0.5),
                    std=(0.5, 0.5, 0.5),
                    crop_fraction=1.0,
                ),
                text=dict(tokenizer=f"data/{corpus}/tokenizer.json", token_types=False, **texts),
            ),
            data=dict(
                source=dict(name="tar", path=f"data/{corpus}"),
                transforms=(
                    dict(name="random_resized_crop", scale=(0.9, 1.0)),
                    dict(name="tokenize"),
                ),
                threads=4,
                processes=8,
                max_corrupt_rate=0.01,
            ),
            evaluators=dict(
                zero_shot=dict(
                    name="zero_shot",
                    test=imagenet("validation"),
                    classes="data/imagenet/classes.txt",
                    templates="data/imagenet/templates.txt",
                    batch_size=1024,
                    every={"percent": 5},
                )
            ),
            checkpoint=dict(every={"percent": 1}, keep_last=2),
            log=dict(every={"steps": 50}),
            hardware=hardware.section(),
            deadlines=dict(),
        )
    )


def tower(name: str, variant: str, **fields) -> dict:
    """A network of a published size, with the fields that hardware transforms set."""
    return text.model(name, variant, **fields)


def adamw(lr: float, warmup: dict, **fields) -> dict:
    """AdamW as CLIP's descendants have it: cosine to zero, strong decay, a quick second moment."""
    section = dict(
        name="adamw",
        lr=lr,
        schedule=dict(name="cosine", warmup=warmup),
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        decay_rules=DECAY_TABLES,
    )
    return section | fields


def clip(
    variant: str, words: str, dim: int, lr: float, corpus: str = "laion400m", rows: int = 32_768
) -> ConfigDict:
    """Section 2.5 and tables 18 to 20 of arXiv 2103.00020, on LAION-400M for want of its own pairs.

    32 passes over 400 M pairs, 32,768 at a time; beta2 .98, eps 1e-6, decay .2, 2,000 steps of
    warm-up, the scale from 1 / .07 to at most 100; square crops are the only augmentation.

    Args:
      variant: the image tower.
      words: size of the text tower.
      dim: of the shared space.
      lr: peak learning rate.
      corpus, rows: other pairs than LAION-400M, and other batches.
    """
    texts = dict(max_length=77, vocabulary=CLIP_WORDS)
    config = base(corpus, rows, 224, texts)
    config.preprocessing.image.mean = (0.48145466, 0.4578275, 0.40821073)
    config.preprocessing.image.std = (0.26862954, 0.26130258, 0.27577711)
    config.duration = {"examples": 12.8e9}
    config.model = dict(
        name="towers",
        image=tower(
            "vit", variant, pre_norm=True, patch_bias=False, norm_eps=1e-5, mlp="quick_gelu"
        ),
        text=tower("clip_text", words),
        embedding_dim=dim,
        image_projection="linear",
        text_projection="linear",
        logit_scale=math.log(1 / 0.07),
        max_logit_scale=math.log(100),
    )
    config.objective = dict(name="softmax_contrast")
    config.optimizer = adamw(lr, {"steps": 2_000})
    return config


def siglip(variant: str, words: str, dim: int, image_size: int, batch_size: int) -> ConfigDict:
    """Sections 3 and 4 of arXiv 2303.15343: the sigmoid loss, t = 10 and b = -10 at the start.

    Adafactor without beta2 above .95, lr 1e-3, decay 1e-4 apart from the lr. Texts are lower-cased,
    without punctuation, and padded to 64 tokens that are all read.
    Ours: 9 G pairs, cosine, and 10,000 steps of warm-up; and the clipping.

    Args:
      variant: the image tower, which is pooled by attention and not projected.
      words: size of the text tower, whose last token is projected.
      dim: of the image tower and so of the shared space.
      image_size: pixels a side.
      batch_size: pairs.
    """
    texts = dict(
        max_length=64,
        vocabulary=SIGLIP_WORDS,
        lowercase=True,
        strip_punctuation=True,
        attend_padding=True,
    )
    config = base("webli", batch_size, image_size, texts)
    config.preprocessing.image.keep_aspect = False
    config.duration = {"examples": 9e9}
    config.model = dict(
        name="towers",
        image=tower("vit", variant, class_token=False, pool="map", mlp="gelu_tanh"),
        text=tower(
            "clip_text",
            words,
            vocab_size=32_000,
            max_length=64,
            causal=False,
            mlp="gelu_tanh",
            norm_eps=1e-6,
        ),
        embedding_dim=dim,
        text_projection="linear_bias",
        logit_scale=math.log(10),
        logit_bias=-10.0,
    )
    config.objective = dict(name="sigmoid_contrast")
    config.optimizer = dict(
        name="adafactor",
        lr=1e-3,
        schedule=dict(name="cosine", warmup={"steps": 10_000}),
        b2_cap=0.95,
        weight_decay=1e-4,
        decay_convention="independent",
        clip=1.0,
    )
    return config


def packed(config: ConfigDict, images: int, row_patches: int, max_patches: int) -> ConfigDict:
    """Images at their own aspect ratio (NaFlex, arXiv 2502.14786), several in a row (2307.06304).

    Args:
      config: its image tower has no class token and square patches.
      images, row_patches: how many images share a row of how many patches.
      max_patches: the most that an image has, and what it has in evaluation.
    """
    grid = config.preprocessing.image.image_size[0] // 16
    config.preprocessing.image.update(max_patches=max_patches, patch_size=16)
    config.model.image.update(position_grid=(grid, grid), position_resize="bilinear")
    pack = dict(name="pack_patches", images=images, row_patches=row_patches)
    config.data.transforms = (dict(name="tokenize"), pack)
    return config


def siglip2(variant: str, words: str, dim: int, image_size: int) -> ConfigDict:
    """Sections 2.1 and 2.2 of arXiv 2502.14786: SigLIP, with captions, on 80 % of 40 G pairs.

    Gemma's 256,000 tokens, lower-cased; Adam, lr 1e-3, decay 1e-4, gradients of norm 1 at most,
    20,000 steps of warm-up, 32,768 pairs in a batch: from memory. b2 .95 is SigLIP's.

    Args:
      variant, words, dim, image_size: as of `siglip`.
    """
    config = siglip(variant, words, dim, image_size, batch_size=32_768)
    config.duration = {"examples": 0.8 * 40e9}
    config.preprocessing.text.vocabulary = GEMMA_WORDS
    config.preprocessing.text.strip_punctuation = False
    config.model.text.vocab_size = GEMMA_WORDS["size"]
    config.objective = dict(name="siglip2")
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        schedule=dict(name="cosine", warmup={"steps": 20_000}, end=LAST_FIFTH),
        b2=0.95,
        weight_decay=1e-4,
        decay_convention="independent",
        clip=1.0,
    )
    return config


def distilled(config: ConfigDict, path: str, weight: float = 0.25) -> None:
    """Section 2.3: on the last 20 % the image tower learns from a slow copy of itself.

    Args:
      config: of the first stage, which becomes that of the second.
      path: the run of the first stage.
      weight: of the two losses: .25 for B, .5 for L, 1 for So400m, .5 for g.
    """
    config.duration = {"examples": 0.2 * 40e9}
    config.objective.distillation = dict(weight=weight)
    config.optimizer.lr *= LAST_FIFTH
    config.optimizer.schedule = dict(name="cosine")
    fresh = (r"(image|patch)_head/.*", r"mask_token")
    config.init_from = dict(path=path, load=((r".*", True),), fresh=fresh)


def locked(config: ConfigDict, path: str) -> ConfigDict:
    """LiT (arXiv 2111.07991): the image tower is one that is trained already, and stays so."""
    config.model.locked = ("image",)
    config.init_from = dict(
        path=path,
        load=((r"encoder/image/(.*)", r"encoder/\1"),),
        fresh=(r"encoder/text(_projection)?/.*", r"encoder/logit_.*"),
    )
    return config
