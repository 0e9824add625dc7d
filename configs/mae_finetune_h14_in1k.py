"""Fine-tuning of an MAE-pre-trained ViT-H/14 on ImageNet-1k.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 9.
Command: python -m launch.local --config configs/mae_finetune_h14_in1k.py --workdir runs/ft_h14
  after mae_h14_in1k.py; --config.init_from.path takes another run or a Hugging Face directory.
Cost: not measured here.
Published: 86.9 top-1.
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.fine_tuning(
        "H/14",
        pretrained="runs/mae_h14",
        epochs=50,
        base_lr=0.001,
        layer_decay=0.75,
        drop_path=0.3,
    )
    return hardware.apply(config, arg)
