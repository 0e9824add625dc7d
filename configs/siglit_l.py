"""SigLiT: a large text tower learns to read a locked ViT-g/14, on four TPU v4 chips.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, table 1.
Command: python -m launch.local --config configs/siglit_l.py --workdir runs/siglit_l
  init_from.path: a trained ViT-g/14, pooled by attention; the paper's is not public.
Cost: the paper: two days on four TPU v4 chips, from features that were computed before. Planned
  (launch.plan, :v4, v4:2x2x1): 8.2 GiB of a chip's 32, and at least 14.4 s a step, most of it for
  the locked tower.
Published: 84.5 zero-shot on ImageNet.
Measured: not run.

20,480 pairs are embedded in 20 parts and compared as a whole. The image tower runs forward only,
and has no optimizer state.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.siglip("g/14", "L", dim=1408, image_size=224, batch_size=20_480)
    config = image_text.locked(config, "weights/vit_g14")
    config.duration = {"examples": 900e6}
    config.hardware.micro_batches = 20
    hardware.in_networks(config, scan=True, remat="full")
    return hardware.apply(config, arg)
