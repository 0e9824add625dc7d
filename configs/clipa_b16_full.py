"""CLIPA B/16, second stage: full images, a third of a pass.

Paper: An Inverse Scaling Law for CLIP Training, arXiv 2305.07017 (I50, T16).
Command: python -m launch.local --config configs/clipa_b16_full.py --workdir runs/clipa_b16_full
  after clipa_b16.py; positions are resized from 7 x 7 to 14 x 14.
Cost: the paper: two days on eight A100, both stages.
Published: 63.2 zero-shot on ImageNet.
Measured: not run.
"""

from configs import clipa_b16, hardware


def get_config(arg=None):
    config = clipa_b16.get_config()
    config.batch_size = 8_192
    config.duration = {"examples": 131_072_000}
    config.preprocessing.image.image_size = (224, 224)
    config.optimizer.lr = 2.56e-5
    config.optimizer.schedule.warmup = {"steps": 3_072}
    config.init_from = dict(path="runs/clipa_b16", load=((".*", True),), fresh=())
    return hardware.apply(config, arg)
