"""MAE pre-training of ViT-L/16 on ImageNet-1k, 1600 epochs.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 8.
Command: python -m launch.local --config configs/mae_l16_in1k.py --workdir runs/mae_l16
Cost: the paper: 15.4 h for 800 epochs with a 1-block decoder on 128 TPU v3 cores (table 2).
Published: 85.9 top-1 after fine-tuning (mae_finetune_l16_in1k.py), 76.0 by linear probe
(mae_linear_l16_in1k.py).
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.pretraining("L/16", epochs=1600)
    return hardware.apply(config, arg)
