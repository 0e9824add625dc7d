"""Linear probe of an MAE-pre-trained ViT-H/14 on ImageNet-1k.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 10.
Command: python -m launch.local --config configs/mae_linear_h14_in1k.py --workdir runs/lin_h14
  after mae_h14_in1k.py; --config.init_from.path takes another run or a Hugging Face directory.
Cost: not measured here.
Published: 77.2 top-1.
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.linear_probing("H/14", pretrained="runs/mae_h14")
    return hardware.apply(config, arg)
