"""SigLIP L/16 at 256 pixels on pairs like WebLI's.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, sections 3 and 4.
Command: python -m launch.local --config configs/siglip_l16.py --workdir runs/siglip_l16
Cost: not measured here.
Published: 80.5 zero-shot on ImageNet, with weights trained for longer.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.siglip("L/16", "L", dim=1024, image_size=256, batch_size=32_768)
    return hardware.apply(config, arg)
