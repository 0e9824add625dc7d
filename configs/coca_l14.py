"""CoCa ViT-L/14 on LAION-2B: contrast, and captions written from the image.

Paper: CoCa: Contrastive Captioners are Image-Text Foundation Models, arXiv 2205.01917, section 4.1
  (captions weigh 2, contrast 1); in the size and on the pairs of OpenCLIP.
Command: python -m launch.local --config configs/coca_l14.py --workdir runs/coca_l14
Cost: not measured here.
Published: 75.6 zero-shot on ImageNet (OpenCLIP, 13 G pairs in batches of 90k).
Measured: not run.
Differences: the decoder sees all tokens of the image, not 256 that attention made of them.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.clip("L/14", "B", dim=768, lr=1e-3, corpus="laion2b", rows=90_112)
    config.model.image.mlp = config.model.text.mlp = "gelu"
    config.objective = dict(name="contrast_caption", decoder=dict(depth=12))
    config.optimizer.schedule.warmup = {"steps": 10_000}
    config.optimizer.b2 = 0.95
    return hardware.apply(config, arg)
