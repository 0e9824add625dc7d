"""ViT-B/32 from scratch on ImageNet-1k, 90 epochs: the cheapest B-sized run.

Paper: the recipe of arXiv 2205.01580, which reports S/16; for B/32 it is ours to report.
Command: python -m launch.local --config configs/vit_b32_in1k.py --workdir runs/vit_b32
Cost: not measured here.
Published: none for this recipe.
Measured: not run.
"""

from configs import hardware, vit


def get_config(arg=None):
    config = vit.better_plain("B/32", epochs=90)
    return hardware.apply(config, arg)
