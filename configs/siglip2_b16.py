"""SigLIP 2 B/16 at 256 pixels, first stage: contrast and captions.

Paper: SigLIP 2, arXiv 2502.14786, sections 2.1 and 2.2.
Command: python -m launch.local --config configs/siglip2_b16.py --workdir runs/siglip2_b16
  then siglip2_b16_distil.py, the last fifth of training.
Cost: not measured here.
Published: 79.1 zero-shot on ImageNet after both stages, from memory.
Measured: not run.
Differences: captions only, where the paper's decoder predicts boxes too; the learning rate follows
  the paper's cosine over both stages but for how it bends.
"""

from configs import hardware, image_text


def get_config(arg=None):
    return hardware.apply(image_text.siglip2("B/16", "B", dim=768, image_size=256), arg)
