"""The experiments that ship, and a shrunken form of each that trains in seconds."""

import json
import os
import pathlib
import tempfile

from ml_collections import ConfigDict

from encoders.config import load_config
from tools.benchmark import in_clusters

ROOT = pathlib.Path(__file__).parents[2]
# Imported by them.
PARTS = {
    "__init__", "bert", "common", "hardware", "image_text", "mae", "sentence", "speech", "sweeps",
    "text", "vit",
}  # fmt: skip
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in PARTS)
VARIANTS = [
    "vit_s16_in1k:300", "mae_l16_in1k:scan,remat", "mae_b16_in1k:v5p", "mae_b16_in1k:h200",
    "siglip_b16:naflex", "demo_speech:ctc", "demo_speech:contrast",
]  # fmt: skip
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
    if config.preprocessing.name == "image_text":
        _shrink_pairs(config)
    elif config.preprocessing.name in ("text", "code"):
        _shrink_text(config)
    elif config.preprocessing.name == "audio":
        _shrink_audio(config)
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
    """An experiment of every kind (encoder, objective, where it starts from), then of every
    optimizer that is left.

    Others differ in fields alone, with which test_golden builds and traces each of them.
    """
    configs = {name: shrink(load(name)) for name in names}
    order = sorted(names, key=lambda name: _preference(configs[name]))
    found: list[str] = []
    for part in (_kind, lambda config: config.optimizer.name):
        seen = {part(configs[name]) for name in found}
        for name in order:
            if part(configs[name]) not in seen:
                seen.add(part(configs[name]))
                found.append(name)
    return found


def _kind(config: ConfigDict) -> tuple:
    return config.model.name, config.objective.name, "init_from" in config


def _preference(config: ConfigDict) -> tuple[bool, bool]:
    """First SigLIP 2's second stage, which does what its first does and more; last convolutional
    towers, which compile for long, and whose training has tests of its own."""
    tower = config.model.get("image", {})
    return "distillation" not in config.objective, tower.get("name") in CONVOLUTIONAL


# Convolutional networks, and images that leave something of them.
CONVOLUTIONAL = {
    "clip_resnet": (dict(width=4, blocks=(1, 1, 1, 1), head_dim=16, position_grid=None), 64),
    "efficientnet": (dict(width_factor=0.1, depth_factor=0.3), 32),
    "resnet": (dict(width=4, blocks=(1, 1, 1, 1)), 32),
}


def _shrink_pictures(config: ConfigDict) -> None:
    if config.model.name in CONVOLUTIONAL:
        fields, side = CONVOLUTIONAL[config.model.name]
        size = (side, side)
    else:
        fields = dict(width=32, depth=1, mlp_dim=64, num_heads=4)
        patch = config.model.get("patch_size") or int(config.model.variant.split("/")[1])
        size = (4 * patch, 4 * patch)
    channels = config.preprocessing.channels
    config.preprocessing.image_size = size
    config.model.update(fields)
    if "decoder" in config.objective:
        config.objective.decoder = dict(width=32, depth=1, num_heads=4)
    config.data.source = synthetic(size, channels)
    for evaluator in config.evaluators.values():
        for split in ("train", "test"):
            if split in evaluator:
                evaluator[split] = synthetic(size, channels)


def _shrink_pairs(config: ConfigDict) -> None:
    """Bundled emoji with their names, whatever the corpus."""
    sizes = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
    image, side = CONVOLUTIONAL.get(config.model.image.name, (dict(sizes, patch_size=4), 8))
    config.preprocessing.image.image_size = (side, side)
    config.preprocessing.text.vocabulary = None
    config.preprocessing.text.update(dict(tokenizer="sample:emoji/tokenizer.json", max_length=8))
    config.data.source = dict(name="sample", dataset="emoji", split="train")
    config.evaluators = {}
    config.model.image.update(image)
    if config.preprocessing.image.get("max_patches"):
        config.preprocessing.image.update(dict(max_patches=6, patch_size=4))
        *others, pack = config.data.transforms
        config.data.transforms = (*others, dict(pack, images=2, row_patches=10))
        config.model.image.position_grid = (2, 2)
    config.model.text.update(dict(sizes, max_length=8, vocab_size=2048))  # the tokenizer's
    for name in {"audio", "depth"} & set(config.model):
        config.model[name].update(dict(sizes, patch_size=4))
        if "patch_stride" in config.model[name]:
            config.model[name].patch_stride = 3
        config.preprocessing[name].shape = (8, 8, 1)
    config.model.embedding_dim = 32 if config.model.image.name == "efficientnet" else 16
    if "decoder" in config.objective:
        config.objective.decoder.depth = 1
    if "distillation" in config.objective:
        few = dict(num_crops=2, crop_size=4, num_prototypes=16, num_patch_prototypes=8)
        config.objective.distillation.update(few, hidden_dim=16, bottleneck_dim=8)
    config.hardware.micro_batches = min(config.hardware.get("micro_batches", 1), 2)
    if "init_from" in config:
        del config["init_from"]


# Front ends of encoders of speech.
CONVOLUTIONS = dict(conv_dim=8, position_kernel=8, position_groups=2)
FRONT_ENDS = {
    "conformer": dict(conv_channels=(4, 4)),
    "data2vec_audio": dict(CONVOLUTIONS, position_depth=2),
    "spectrogram_vit": dict(max_frames=64, num_mels=32),
    "whisper": dict(pad_to=None),
}


def _shrink_audio(config: ConfigDict) -> None:
    """Bundled digits, whatever the corpus."""
    config.model.update(dict(width=16, depth=1, mlp_dim=32, num_heads=2))
    config.model.update(FRONT_ENDS.get(config.model.name, CONVOLUTIONS))
    config.preprocessing.update(dict(max_samples=8000, bucket_samples=None, resample=True))
    config.preprocessing.min_samples = 900
    digits = dict(name="audio", path="sample:digits", split="train")
    if config.data.source.name == "units":
        # One place for all, so that equal experiments are seen to be equal.
        place = f"encoders-{os.getpid()}-units-{config.preprocessing.units_per_second:.0f}"
        path = pathlib.Path(tempfile.gettempdir()) / place
        digits = in_clusters(digits, config.preprocessing, path, clusters=50)
    config.data.source = digits
    config.evaluators = {}
    if "decoder" in config.objective:
        config.objective.decoder = dict(width=16, depth=1, num_heads=2)
    if "top_layers" in config.objective:
        config.objective.top_layers = 1
    if "init_from" in config:
        del config["init_from"]


TOKENIZER = "sample:peps/tokenizer.json"  # of 6,144 ids


def _shrink_text(config: ConfigDict) -> None:
    """Bundled documents, whatever the corpus; pairs and sentences keep their form."""
    config.preprocessing.vocabulary = None
    config.preprocessing.update(dict(tokenizer=TOKENIZER, max_length=32))
    config.model.update(dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=6144))
    if "depth" in config.objective.get("generator", {}):  # a part, and one block has none
        config.objective.generator.depth = 1.0
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
