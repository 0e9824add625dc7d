"""SigLIP 2 B/16 at 256 pixels, second stage: the image tower learns from a slow copy of itself.

Paper: SigLIP 2, arXiv 2502.14786, section 2.3.
Command: python -m launch.local --config configs/siglip2_b16_distil.py
  --workdir runs/siglip2_b16_distil after siglip2_b16.py.
Cost: not measured here.
Published: 79.1 zero-shot on ImageNet, from memory.
Measured: not run.
Differences: crops keep their colours; heads, temperatures and momenta, of which the paper says
  nothing, are DINO's and iBOT's.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.siglip2("B/16", "B", dim=768, image_size=256)
    image_text.distilled(config, "runs/siglip2_b16")
    return hardware.apply(config, arg)
