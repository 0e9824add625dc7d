"""SigLIP B/16 on pairs like WebLI's.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, sections 3 and 4.
Command: python -m launch.local --config configs/siglip_b16.py --workdir runs/siglip_b16
Cost: the paper: five days on 32 TPU v4 chips, for 73.4.
Published: 76.0 zero-shot on ImageNet, with weights trained for longer.
Measured: not run.

The argument 'naflex' has images at their own aspect ratio, of up to 256 patches, four of them in a
row of 784: as many patches as four squares of 224 pixels have.
"""

from configs import hardware, image_text


def get_config(arg=None):
    names = (arg or "").split(",")
    config = image_text.siglip("B/16", "B", dim=768, image_size=224, batch_size=32_768)
    if "naflex" in names:
        image_text.packed(config, images=4, row_patches=4 * 196, max_patches=256)
    return hardware.apply(config, ",".join(name for name in names if name != "naflex"))
