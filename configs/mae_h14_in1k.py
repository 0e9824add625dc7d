"""MAE pre-training of ViT-H/14 on ImageNet-1k, 1600 epochs.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 8.
Command: python -m launch.local --config configs/mae_h14_in1k.py --workdir runs/mae_h14
Cost: not measured here; the paper trains on 128 TPU v3 cores.
Published: 86.9 top-1 after fine-tuning (mae_finetune_h14_in1k.py), 77.2 by linear probe
(mae_linear_h14_in1k.py).
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.pretraining("H/14", epochs=1600)
    return hardware.apply(config, arg)
