"""The experiments that ship, and a shrunken form of each that trains in seconds."""

import json
import os
import pathlib
import tempfile

from ml_collections import ConfigDict

from encoders.config import load_config

ROOT = pathlib.Path(__file__).parents[2]
# Imported by them.
PARTS = {"__init__", "bert", "common", "hardware", "mae", "sentence", "sweeps", "text", "vit"}
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
    """The same experiment on a tiny encoder, tiny pictures or texts, and two steps."""
    config = ConfigDict(config.to_dict())
    if config.preprocessing.name in ("text", "code"):
        _shrink_text(config)
    else:
        _shrink_pictures(config)
    config.batch_size = 16
    config.duration = {"steps": 2}
    config.data.examples_per_epoch = None
    config.data.threads, config.data.processes = 1, 0
    for phase in {"warmup", "cooldown", "decay"} & set(config.optimizer.schedule):
        config.optimizer.schedule[phase] = {"steps": 1}
    config.checkpoint = dict(every={"steps": 2})
    config.log = dict(every={"steps": 1}, tensorboard=False)
    for evaluator in config.evaluators.values():
        evaluator["batch_size"] = 16
    return config


def distinct(names: list[str]) -> list[str]:
    """Of experiments that differ, once shrunken, in sizes and rates alone the first."""
    found: dict[str, str] = {}
    for name in names:
        config = shrink(load(name)).to_dict()
        for number in ("variant", "drop_path", "rotary_temperature", "max_length"):
            config["model"].pop(number, None)
        for numbers in ("generator", "masking"):
            config["objective"].pop(numbers, None)
        given = config["optimizer"]
        config["optimizer"] = given["name"], given["schedule"]["name"], sorted(given)
        found.setdefault(json.dumps(config, sort_keys=True, default=str), name)
    return list(found.values())


def _shrink_pictures(config: ConfigDict) -> None:
    patch = config.model.get("patch_size") or int(config.model.variant.split("/")[1])
    size = (4 * patch, 4 * patch)
    channels = config.preprocessing.channels
    config.preprocessing.image_size = size
    config.model.update(dict(width=32, depth=2, mlp_dim=64, num_heads=4))
    if "decoder" in config.objective:
        config.objective.decoder = dict(width=32, depth=1, num_heads=4)
    config.data.source = synthetic(size, channels)
    for evaluator in config.evaluators.values():
        for split in ("train", "test"):
            if split in evaluator:
                evaluator[split] = synthetic(size, channels)


TOKENIZER = "sample:peps/tokenizer.json"


def _shrink_text(config: ConfigDict) -> None:
    """Bundled documents, whatever the corpus; pairs and sentences keep their form."""
    config.preprocessing.vocabulary = None
    config.preprocessing.update(dict(tokenizer=TOKENIZER, max_length=32))
    config.model.update(dict(width=16, depth=2, mlp_dim=32, num_heads=2))
    config.evaluators = {}
    source = config.data.source
    if source.name == "mixture":
        pass  # of what is bundled
    elif source.name in ("tokens", "sentence_pairs"):
        source.path = "sample:peps"
    elif source.name == "text":
        fields = ("text", "other", *source.fields)
        rows = [{name: f"Some {name} of number {i}." for name in fields} for i in range(64)]
        # One place for all, so that equal experiments are seen to be equal.
        file = pathlib.Path(tempfile.gettempdir()) / f"encoders-{os.getpid()}-{len(fields)}.jsonl"
        file.write_text(
            "".join(json.dumps(row | {"label": i % 3}) + "\n" for i, row in enumerate(rows))
        )
        source.path = str(file)
    elif source.name == "python_code":
        source.path = str(ROOT / "encoders" / "layers")
        _shrink_code(config)
    # The weights that some go on from, or learn from, are not here.
    if "init_from" in config:
        del config["init_from"]
    if "teacher" in config.objective:
        config.objective = dict(name="masked_language")


def _shrink_code(config: ConfigDict) -> None:
    """Rows of 32 tokens have no room for as much text, nor for as many variables."""
    sizes = {"bimodal": dict(max_text=8), "data_flow": dict(max_text=8, max_nodes=6)}
    config.data.transforms = tuple(
        dict(transform, **sizes.get(transform["name"], {})) for transform in config.data.transforms
    )
    if config.objective.name == "data_flow":
        config.objective.max_nodes = 6
    if config.preprocessing.name == "code":
        config.preprocessing.update(dict(max_text=8, max_nodes=6))
