"""MAE pre-training of ViT-B/16 on ImageNet-1k, 1600 epochs.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 8.
Command: python -m launch.local --config configs/mae_b16_in1k.py --workdir runs/mae_b16
Cost: not measured here; the paper trains on 128 TPU v3 cores.
Published: 83.6 top-1 after fine-tuning (mae_finetune_b16_in1k.py), 67.8 by linear probe
(mae_linear_b16_in1k.py).
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.pretraining("B/16", epochs=1600)
    return hardware.apply(config, arg)
