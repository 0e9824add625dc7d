"""CLIP with a ResNet-50 on LAION-400M.

Paper: Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020,
  section 2.4, tables 18 and 19.
Command: python -m launch.local --config configs/clip_rn50.py --workdir runs/clip_rn50
Cost: not measured here.
Published: 59.6 zero-shot on ImageNet, with CLIP's own pairs.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.clip("B/32", "M", dim=1024, lr=5e-4)
    config.model.image = dict(name="clip_resnet", variant="RN50", position_grid=(7, 7))
    config.model.image_projection = "linear_bias"
    return hardware.apply(config, arg)
