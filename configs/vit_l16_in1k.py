"""ViT-L/16 from scratch on ImageNet-1k, 200 epochs.

Paper: the supervised baseline of MAE, arXiv 2111.06377, table 3 and appendix A.2.
Command: python -m launch.local --config configs/vit_l16_in1k.py --workdir runs/vit_l16
Cost: not measured here.
Published: 82.6 top-1 (with weight averaging).
Measured: not run.
"""

from configs import hardware, vit


def get_config(arg=None):
    config = vit.from_scratch("L/16", epochs=200, drop_path=0.2)
    return hardware.apply(config, arg)
