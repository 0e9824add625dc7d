"""CLIP ViT-L/14 on DataComp-1B: a larger batch and rate, 12.8 G pairs.

Paper: DataComp, arXiv 2304.14108, scale xlarge (batch 90k, lr 1e-3, beta2 .95, 10,000 steps of
  warm-up).
Command: python -m launch.local --config configs/clip_l14_datacomp.py --workdir runs/datacomp_l14
Cost: not measured here.
Published: 79.2 zero-shot on ImageNet.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.clip("L/14", "B", dim=768, lr=1e-3, corpus="datacomp_1b", rows=90_112)
    config.optimizer.schedule.warmup = {"steps": 10_000}
    config.optimizer.b2 = 0.95
    return hardware.apply(config, arg)
