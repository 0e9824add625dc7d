"""Linear probe of an MAE-pre-trained ViT-L/16 on ImageNet-1k.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 10.
Command: python -m launch.local --config configs/mae_linear_l16_in1k.py --workdir runs/lin_l16
  after mae_l16_in1k.py; --config.init_from.path takes another run or a Hugging Face directory.
Cost: not measured here.
Published: 76.0 top-1.
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.linear_probing("L/16", pretrained="runs/mae_l16")
    return hardware.apply(config, arg)
