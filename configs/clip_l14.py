"""CLIP ViT-L/14 on LAION-400M.

Paper: Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020,
  tables 18 and 20; on the open pairs of OpenCLIP.
Command: python -m launch.local --config configs/clip_l14.py --workdir runs/clip_l14
Cost: OpenCLIP: 127 h on 400 A100; the paper: 12 days on 256 V100.
Published: 75.5 zero-shot on ImageNet with CLIP's own pairs; OpenCLIP 72.77 with these.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.clip("L/14", "B", dim=768, lr=4e-4)
    return hardware.apply(config, arg)
