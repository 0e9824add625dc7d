"""CLIPA B/16, first stage: small images and short texts.

Paper: An Inverse Scaling Law for CLIP Training, arXiv 2305.07017 (I50, T16).
Command: python -m launch.local --config configs/clipa_b16.py --workdir runs/clipa_b16
Cost: the paper: two days on eight A100, both stages.
Published: 59.7 zero-shot on ImageNet, 63.2 after clipa_b16_full.py.
Measured: not run.
"""

from configs import hardware, image_text


def get_config(arg=None):
    config = image_text.clip("B/16", "M", dim=512, lr=2.048e-3, rows=65_536)
    config.duration = {"examples": 6 * 400e6}
    config.preprocessing.image.image_size = (112, 112)
    config.preprocessing.text.max_length = config.model.text.max_length = 16
    config.data.transforms[0]["scale"] = (0.4, 1.0)
    config.optimizer.schedule.warmup = {"steps": 782}
    config.optimizer.b2 = 0.95
    return hardware.apply(config, arg)
