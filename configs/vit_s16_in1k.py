"""ViT-S/16 from scratch on ImageNet-1k, 90 epochs, or 300 with the argument '300'.

Paper: Better plain ViT baselines for ImageNet-1k, arXiv 2205.01580.
Command: python -m launch.local --config configs/vit_s16_in1k.py[:300] --workdir runs/vit_s16
Cost: the paper's 90 epochs take under 7 hours on a TPU v3-8.
Published: 76.5 top-1 (90 epochs), 80.0 (300 epochs).
Measured: not run.
"""

from configs import hardware, vit


def get_config(arg=None):
    names = (arg or "").split(",")
    config = vit.better_plain("S/16", epochs=300 if "300" in names else 90)
    return hardware.apply(config, ",".join(name for name in names if name != "300"))
