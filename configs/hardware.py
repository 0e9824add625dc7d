"""How a machine is used, apart from the science: small named transforms of a config.

    python -m launch.local --config configs/mae_l16_in1k.py:remat,scan ...

Each changes speed and memory only. An experiment's get_config calls `apply` on its argument.
"""

from ml_collections import ConfigDict


def mesh(**sizes: int) -> dict[str, int]:
    """All axes of a mesh; those not given stay as they are on one slice: everything is `fsdp`."""
    return dict(dcn=1, data=1, fsdp=-1, tensor=1, sequence=1) | sizes


def section() -> ConfigDict:
    """The hardware section that experiments start from, for any machine."""
    return ConfigDict(dict(mesh=mesh(), environment=dict()))


def on(config: ConfigDict, sizes: dict[str, int], **environment: str) -> ConfigDict:
    """The config with another mesh, and variables added to its environment."""
    hardware = section()
    hardware.update(config.get("hardware", {}))
    hardware.mesh.update(sizes)
    hardware.environment.update(environment)
    config.hardware = hardware
    return config


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
    return on(config, mesh(data=-1, fsdp=1))


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
