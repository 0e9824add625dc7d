"""LiT g/14: a text tower of the same size learns to read a locked ViT-g/14.

Paper: LiT: Zero-Shot Transfer with Locked-image text Tuning, arXiv 2111.07991, table 1.
Command: python -m launch.local --config configs/lit_g14.py --workdir runs/lit_g14
  init_from.path: a trained ViT-g/14, pooled by attention; the paper's is not public.
Cost: not measured here; 550,000 steps of 32,768 pairs.
Published: 85.2 zero-shot on ImageNet.
Measured: not run.
Differences: SigLIP's optimizer and preparation of texts, cut to 16 tokens as the authors' are; 280
  pixels, of 288 what patches of 14 fill.
"""

import math

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.siglip("g/14", "L", dim=1408, image_size=280, batch_size=32_768)
    config = image_text.locked(config, "weights/vit_g14")
    config.duration = {"examples": 18e9}
    config.preprocessing.text.max_length = config.model.text.max_length = 16
    config.model.text.update(dict(width=1408, depth=40, mlp_dim=6144, num_heads=16))
    config.model.update(dict(logit_scale=math.log(10), logit_bias=None))
    config.objective = dict(name="softmax_contrast")
    hardware.in_networks(config, scan=True, remat="full")
    return hardware.apply(config, arg)
