"""Fine-tuning of an MAE-pre-trained ViT-B/16 on ImageNet-1k.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, table 9.
Command: python -m launch.local --config configs/mae_finetune_b16_in1k.py --workdir runs/ft_b16
  after mae_b16_in1k.py; --config.init_from.path takes another run or a Hugging Face directory.
Cost: not measured here.
Published: 83.6 top-1.
Measured: not run.
"""

from configs import hardware, mae


def get_config(arg=None):
    config = mae.fine_tuning(
        "B/16",
        pretrained="runs/mae_b16",
        epochs=100,
        base_lr=0.0005,
        layer_decay=0.65,
        drop_path=0.1,
    )
    return hardware.apply(config, arg)
