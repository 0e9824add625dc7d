"""The experiments that ship, and a shrunken form of each that trains in seconds."""

import pathlib

from ml_collections import ConfigDict

from encoders.config import load_config

ROOT = pathlib.Path(__file__).parents[2]
PARTS = {"__init__", "common", "hardware", "mae", "sweeps", "vit"}  # imported by them
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in PARTS)
VARIANTS = ["vit_s16_in1k:300", "mae_l16_in1k:scan,remat", "mae_b16_in1k:v5p", "mae_b16_in1k:h200"]
SPECS = sorted([*NAMES, *VARIANTS])


def load(spec: str) -> ConfigDict:
    name, _, argument = spec.partition(":")
    return load_config(f"{ROOT}/configs/{name}.py" + (f":{argument}" if argument else ""))


def synthetic(size: tuple[int, int], channels: int) -> dict:
    return dict(
        name="synthetic", image_size=size, channels=channels, num_classes=10, num_examples=256
    )


def shrink(config: ConfigDict) -> ConfigDict:
    """The same experiment on a tiny encoder, tiny random pictures, and two steps."""
    config = ConfigDict(config.to_dict())
    patch = config.model.get("patch_size") or int(config.model.variant.split("/")[1])
    size = (4 * patch, 4 * patch)
    channels = config.preprocessing.channels
    config.preprocessing.image_size = size
    config.model.update(dict(width=32, depth=2, mlp_dim=64, num_heads=4))
    if "decoder" in config.objective:
        config.objective.decoder = dict(width=32, depth=1, num_heads=4)
    config.batch_size = 16
    config.duration = {"steps": 2}
    config.data.source = synthetic(size, channels)
    config.data.examples_per_epoch = None
    config.data.threads, config.data.processes = 1, 0
    for phase in {"warmup", "cooldown"} & set(config.optimizer.schedule):
        config.optimizer.schedule[phase] = {"steps": 1}
    config.checkpoint = dict(every={"steps": 2})
    config.log = dict(every={"steps": 1}, tensorboard=False)
    for evaluator in config.evaluators.values():
        evaluator["batch_size"] = 16
        for split in ("train", "test"):
            if split in evaluator:
                evaluator[split] = synthetic(size, channels)
    return config
