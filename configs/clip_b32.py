"""CLIP ViT-B/32 on LAION-400M.

Paper: Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020,
  tables 18 and 20; on the open pairs of OpenCLIP.
Command: python -m launch.local --config configs/clip_b32.py --workdir runs/clip_b32
Cost: OpenCLIP: 36 h on 128 A100.
Published: 63.3 zero-shot on ImageNet with CLIP's own pairs; OpenCLIP 62.96 with these.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.clip("B/32", "M", dim=512, lr=5e-4)
    return hardware.apply(config, arg)
