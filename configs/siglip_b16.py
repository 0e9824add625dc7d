"""SigLIP B/16 on pairs like WebLI's.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, sections 3 and 4.
Command: python -m launch.local --config configs/siglip_b16.py --workdir runs/siglip_b16
Cost: the paper: five days on 32 TPU v4 chips, for 73.4.
Published: 76.0 zero-shot on ImageNet, with weights trained for longer.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.siglip("B/16", "B", dim=768, image_size=224, batch_size=32_768)
    return hardware.apply(config, arg)
