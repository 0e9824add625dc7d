"""tests/training/tiny.py at four points of a few steps each."""

from training import tiny  # as load_config finds it: a neighbour's folder

from configs import sweeps


def get_config(arg=None):
    config = tiny.get_config(arg)
    config.duration = {"steps": 6}
    config.checkpoint.every = {"steps": 3}
    config.log.every = {"steps": 2}
    config.model.dropout = config.objective.mixup = 0.0
    config.ema = None
    return config


def sweep():
    return sweeps.grid({"optimizer.lr": (1e-3, 1e-2), "optimizer.weight_decay": (0.0, 0.1)})
