"""SigLIP So400m/14 on pairs like WebLI's.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343; the size is that of Getting
  ViT in Shape, 2305.13035.
Command: python -m launch.local --config configs/siglip_so400m.py --workdir runs/siglip_so400m
Cost: not measured here.
Published: 82.0 zero-shot on ImageNet, and 83 at 384 pixels.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.siglip("So400m/14", "So400m", dim=1152, image_size=224, batch_size=32_768)
    return hardware.apply(config, arg)
