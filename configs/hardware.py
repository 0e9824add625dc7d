"""How a machine is used, apart from the science: small named transforms of a config.

    python -m launch.local --config configs/mae_l16_in1k.py:remat,scan ...

Each changes speed and memory only. An experiment's get_config calls `apply` on its argument.
"""

from ml_collections import ConfigDict


def scan(config: ConfigDict) -> ConfigDict:
    """One compiled block for all layers: compile time no longer grows with depth."""
    config.model.scan = True
    return config


def remat(config: ConfigDict) -> ConfigDict:
    """Keeps matrix products, recomputes the rest in the backward pass."""
    config.model.remat = "dots"
    return config


def replicate(config: ConfigDict) -> ConfigDict:
    """Plain data parallelism: every device holds all parameters."""
    config.hardware = dict(mesh=dict(data=-1, fsdp=1, tensor=1))
    return config


TRANSFORMS = {"scan": scan, "remat": remat, "replicate": replicate}


def apply(config: ConfigDict, names: str | None) -> ConfigDict:
    """Applies the transforms named in a comma-separated argument.

    Raises:
      ValueError: a name that is not in TRANSFORMS.
    """
    for name in (names or "").split(","):
        if name and name not in TRANSFORMS:
            raise ValueError(f"unknown config argument '{name}'; known: {sorted(TRANSFORMS)}")
        config = TRANSFORMS[name](config) if name else config
    return config
