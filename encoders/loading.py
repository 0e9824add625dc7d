"""`encoders.load` and `encoders.save`: trained encoders in and out, whatever wrote them.

A path is one of:

  a run                      runs/x (its newest checkpoint) or runs/x/checkpoints
  one checkpoint             runs/x/checkpoints/1000
  what `save` wrote          config.json with "format": "encoders", and model.safetensors
  a Hugging Face directory   config.json with "model_type", and model.safetensors
  a timm directory           config.json with "architecture", and model.safetensors
  sentence-transformers'     modules.json, and the directories it lists
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.checkpoints.formats import files, hf, open_clip, sentence_transformers, timm
from encoders.checkpoints.formats.mapping import Exported, Imported, flatten, with_stats
from encoders.checkpoints.store import CheckpointStore
from encoders.config import build, to_plain
from encoders.data import PREPROCESSING
from encoders.encoder import Encoder, TextEncoder
from encoders.errors import CheckpointError, nearest
from encoders.layers.stack import unstack_layers
from encoders.models import MODELS
from encoders.models.efficientnet import EfficientNet
from encoders.models.resnet import ResNet
from encoders.models.towers import Towers
from encoders.models.vit import ViT
from encoders.objectives import OBJECTIVES
from encoders.pair import PairEncoder
from encoders.rules import unflatten
from encoders.speech import SpeechEncoder

Choice = Literal["auto", "ema", "params"]
FORMATS = ("native", "hf", "open_clip", "sentence-transformers", "timm")
_VERSION = 1


# --- in -------------------------------------------------------------------------------------------


def load(path: str | os.PathLike, *, weights: Choice = "auto") -> Encoder:
    """Loads an encoder.

    Args:
      path: a run, a checkpoint, what `save` wrote, or a directory of Hugging Face, timm or
        open_clip.
      weights: of a run, 'ema' takes the moving average, 'params' what was trained; 'auto' takes the
        average if the run kept one. Others have one set of weights, and ignore this.

    Raises:
      CheckpointError: there is nothing that can be read, or it is damaged.
    """
    found = _alone(_read(path, weights))
    module = build(MODELS, found.model, "model")
    preprocessing = None
    if found.preprocessing is not None:
        preprocessing = build(PREPROCESSING, found.preprocessing, "preprocessing")
    variables = {"params": found.params, **({"stats": found.stats} if found.stats else {})}
    variables = jax.tree.map(jnp.asarray, variables)
    metadata, heads = found.metadata, found.objective_params
    pooling = (found.objective or {}).get("pooling")
    if pooling is not None and "embedding" not in metadata:  # what it was trained with
        metadata = {**metadata, "embedding": {"pooling": [pooling]}}
    kinds = {"text": TextEncoder, "image_text": PairEncoder, "audio": SpeechEncoder}
    kind = kinds.get(module.modality, Encoder)
    return kind(module, variables, preprocessing, metadata, found.objective, heads)


def read_params(
    path: str | os.PathLike, *, weights: Choice = "auto", alone: bool = False
) -> dict[str, Any]:
    """Parameters at a path as an objective has them, {'encoder': ..., 'head': ...}, in numpy.

    With `alone` the encoder's are those that it has without the objective (`Objective.alone`).
    """
    return read_params_and_stats(path, weights=weights, alone=alone)[0]


def read_params_and_stats(
    path: str | os.PathLike, *, weights: Choice = "auto", alone: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`read_params`, and the encoder's running statistics beside them, {'encoder': ...} or {}."""
    found = _read(path, weights)
    found = _alone(found) if alone else found
    params = {"encoder": found.params, **found.objective_params}
    return params, {"encoder": found.stats} if found.stats else {}


def read_variables(path: str | os.PathLike, *, weights: Choice = "auto") -> dict[str, Any]:
    """The variables of the objective at a path, in numpy: for evaluation, or as a teacher's.

    Running statistics that a run keeps beside its parameters are among them.
    """
    params, stats = read_params_and_stats(path, weights=weights)
    variables = {"params": params}
    if (run := _find_run(pathlib.Path(path))) is not None:
        with CheckpointStore(run.directory) as store, contextlib.suppress(CheckpointError):
            # The checkpoint has just been read and is sound; what it may lack is statistics.
            variables |= store.read_params(run.step, "stats")
    elif stats:
        variables["stats"] = stats
    return variables


def run_config(path: str | os.PathLike) -> dict[str, Any]:
    """Config sections of the weights at a path: 'model', 'objective' and 'preprocessing'.

    For a run, its whole config; 'objective' is None where there is an encoder only.
    """
    if (run := _find_run(pathlib.Path(path))) is not None:
        with CheckpointStore(run.directory) as store:
            return store.metadata(run.step)["config"]
    found = _read(path, "auto")
    return {
        "model": found.model,
        "objective": found.objective,
        "preprocessing": found.preprocessing,
    }


def _alone(found: Imported) -> Imported:
    """With the encoder's parameters as they are without those of the objective."""
    kind = None if found.objective is None else OBJECTIVES.get(found.objective["name"])
    if kind is None:
        return found
    rest = dict(kind.alone({"encoder": found.params, **found.objective_params}))
    return dataclasses.replace(found, params=rest.pop("encoder"), objective_params=rest)


class _Run(NamedTuple):
    directory: pathlib.Path  # of the checkpoints
    step: int | None  # None for the newest


def _find_run(path: pathlib.Path) -> _Run | None:
    """Whether a path is a run, its checkpoints, or one of them."""
    if (path / "checkpoints").is_dir():
        return _Run(path / "checkpoints", None)
    if path.is_dir() and path.name == "checkpoints":
        return _Run(path, None)
    if path.is_dir() and path.name.isdigit() and not (path / files.CONFIG).exists():
        return _Run(path.parent, int(path.name))
    return None


def _read(path: str | os.PathLike, weights: Choice) -> Imported:
    path = pathlib.Path(path)
    if weights not in get_args(Choice):
        raise CheckpointError(f"weights: unknown '{weights}'.{nearest(weights, get_args(Choice))}")
    if not path.is_dir():
        raise CheckpointError(_not_a_directory(path))
    if (run := _find_run(path)) is not None:
        return _read_run(run, weights)
    if (path / sentence_transformers.MODULES).is_file():
        return sentence_transformers.read(path)
    if open_clip.holds(path):
        return open_clip.read(path)
    if not (path / files.CONFIG).is_file():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise CheckpointError(
            f"{path}: is no run, checkpoint, or directory of Hugging Face, timm or open_clip: it "
            f"has neither checkpoints/ nor {files.CONFIG}; it holds {held}."
        )
    config = files.read_json(path / files.CONFIG)
    if config.get("format") == "encoders":
        return _read_native(path, config)
    if "model_type" in config:
        return hf.read(path)
    if "architecture" in config:
        return timm.read(path)
    raise CheckpointError(
        f"{path / files.CONFIG}: expected one of the fields 'format' (written by encoders.save), "
        "'model_type' (Hugging Face) or 'architecture' (timm)."
    )


def _not_a_directory(path: pathlib.Path) -> str:
    if path.is_file():
        return f"{path}: is a file; give the directory it is in, with its {files.CONFIG}."
    beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    hint = nearest(path.name, beside) if beside else ""
    return f"{path}: no such directory (nothing is downloaded).{hint}"


def _read_run(run: _Run, weights: Choice) -> Imported:
    with CheckpointStore(run.directory) as store:
        metadata = store.metadata(run.step)
        config = metadata["config"]
        if weights == "auto":
            weights = "params" if config.get("ema") is None else "ema"
        stats: dict[str, Any] = {}
        params = jax.tree.map(np.asarray, store.read_params(run.step, weights))
        with contextlib.suppress(CheckpointError):  # there are none
            stats = store.read_params(run.step, "stats").get("stats", {}).get("encoder", {})
    kept = {name: value for name, value in metadata.items() if name != "preprocessing"}
    return Imported(
        model=config["model"],
        params=params.pop("encoder"),
        preprocessing=metadata["preprocessing"],
        objective=config["objective"],
        objective_params=params,
        metadata={"format": "run", "weights": weights, **kept},
        stats=jax.tree.map(np.asarray, stats),
    )


def _read_native(path: pathlib.Path, config: Mapping[str, Any]) -> Imported:
    if config.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: was written as version {config.get('version')!r} of the format; this one "
            f"reads {_VERSION}."
        )
    missing = [
        key for key in ("model", "preprocessing", "objective", "metadata") if key not in config
    ]
    if missing:
        raise CheckpointError(f"{path / files.CONFIG}: lacks {', '.join(missing)}.")
    tree = unflatten(files.read_tensors(path))
    if "encoder" not in tree:
        raise CheckpointError(f"{path}: its weights hold no 'encoder'.")
    stats = tree.pop("stats", {})
    return Imported(
        model=config["model"],
        params=tree.pop("encoder"),
        preprocessing=config["preprocessing"],
        objective=config["objective"],
        objective_params=tree,
        metadata=config["metadata"],
        stats=stats,
    )


# --- out ------------------------------------------------------------------------------------------


def save(
    encoder: Encoder,
    directory: str | os.PathLike,
    *,
    format: Literal["native", "hf", "open_clip", "sentence-transformers", "timm"] = "native",
    heads: bool = False,
) -> None:
    """Saves an encoder into a new directory, which appears only when it is complete.

    Args:
      encoder: what `load` returned, or made by hand.
      directory: must not exist, or be empty.
      format: 'native' keeps everything and needs no network code of others; 'hf' loads back in
        transformers, 'sentence-transformers' there (with the way that `embed` pools), 'open_clip'
        and 'timm' in those, with the same outputs. What those have no place for is an error that
        names the field.
      heads: also writes what came with the encoder: a classifier or a decoder.

    Raises:
      CheckpointError: the format is unknown or cannot express this encoder.
      StorageError: the directory is taken, or could not be written.
    """
    if format not in FORMATS:
        raise CheckpointError(f"format: unknown '{format}'.{nearest(format, FORMATS)}")
    if heads and not encoder.heads:
        raise CheckpointError("heads=True: these weights are of an encoder alone.")
    if format == "native":
        write, arguments = _write_native, (encoder, heads)
    elif format == "sentence-transformers":
        embedding = _embedding(encoder)
        exported = _exported(encoder, "hf", heads)
        write, arguments = sentence_transformers.write, (exported, embedding)
    else:
        write = {"hf": hf.write, "open_clip": open_clip.write, "timm": timm.write}[format]
        arguments = (_exported(encoder, format, heads),)
    with files.new_directory(directory) as temporary:
        write(temporary, *arguments)


def _embedding(encoder: Encoder) -> dict[str, Any]:
    """How a text encoder makes vectors, wholly said."""
    if encoder.module.modality != "text":
        kind = type(encoder.module).__name__
        raise CheckpointError(f"format 'sentence-transformers': a {kind} encodes no texts.")
    said = encoder.metadata.get("embedding") or {}
    pooling = said.get("pooling") or encoder.module.pool
    if pooling == "none":
        pooling = "mean"
    pooling = [pooling] if isinstance(pooling, str) else list(pooling)
    return {"normalize": False, "prompt": "", **said, "pooling": pooling}


def _write_native(directory: pathlib.Path, encoder: Encoder, heads: bool) -> None:
    preprocessing, tree = encoder.preprocessing, {"encoder": encoder.variables["params"]}
    if stats := encoder.variables.get("stats"):
        tree["stats"] = stats
    config = {
        "format": "encoders",
        "version": _VERSION,
        "model": section_of(MODELS, encoder.module),
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "objective": to_plain(encoder.objective) if heads else None,
        "metadata": to_plain(encoder.metadata),
    }
    if heads:
        tree |= encoder.heads
    files.write_json(directory / files.CONFIG, config)
    flat = {path: np.asarray(jax.device_get(x), order="C") for path, x in flatten(tree).items()}
    files.write_tensors(directory / files.WEIGHTS, flat)


def _exported(encoder: Encoder, format: str, heads: bool) -> Exported:
    module, preprocessing = encoder.module, encoder.preprocessing
    held = jax.tree.map(np.asarray, jax.device_get(dict(encoder.variables)))
    params = with_stats(unstack_layers(held["params"]), held.get("stats", {}))
    if isinstance(module, Towers) and format in ("hf", "open_clip"):
        return _exported_towers(module, params, preprocessing, format)
    name = section_of(MODELS, module)["name"]
    if format == "hf" and (module.modality == "text" or name in hf.SPEECH_MODELS):
        fields = {**section_of(MODELS, module), **dataclasses.asdict(module.size)}
        tokenizer = preprocessing and preprocessing.to_json()
        if not heads:
            return Exported(fields, params, preprocessing=tokenizer)
        trees = jax.tree.map(np.asarray, unstack_layers(jax.device_get(encoder.heads)))
        objective = _resolved(encoder, module)
        return Exported(
            fields,
            params,
            preprocessing=tokenizer,
            objective=objective,
            objective_params=trees,
        )
    fields, image_size, channels = _images(module, params, preprocessing, format)
    return Exported(
        fields,
        params,
        image_size,
        channels,
        None if preprocessing is None else dataclasses.asdict(preprocessing),
        objective=_resolved(encoder, module) if heads else None,
        objective_params=unstack_layers(jax.device_get(encoder.heads)) if heads else {},
        class_names=encoder.metadata.get("class_names"),
    )


def _exported_towers(module: Towers, params: Any, preprocessing: Any, format: str) -> Exported:
    images = None if preprocessing is None else preprocessing.image
    image, image_size, channels = _images(module.image, params["image"], images, format)
    text = {**section_of(MODELS, module.text), **dataclasses.asdict(module.text.size)}
    fields = {**section_of(MODELS, module), "image": image, "text": text}
    if preprocessing is not None:
        texts = preprocessing.text.to_json()
        preprocessing = {"image": dataclasses.asdict(images), "text": texts}
    return Exported(
        {**fields, "embedding_dim": module.dim}, params, image_size, channels, preprocessing
    )


def _images(
    module: nn.Module, params: Mapping[str, Any], preprocessing: Any, format: str
) -> tuple[dict[str, Any], tuple[int, int], int]:
    """Fields of an image encoder with sizes resolved, the image's (height, width), and channels."""
    if isinstance(module, (EfficientNet, ResNet)):
        return _convolutional(module, params, preprocessing, format)
    if not isinstance(module, ViT) or module.modality != "image":
        raise CheckpointError(
            f"format '{format}': writes a ViT, and this is {type(module).__name__}; "
            "use format='native'."
        )
    patch = module.patch
    if "positions" in params:
        rows, columns = params["positions"].shape[:2]
        image_size = (rows * patch[0], columns * patch[1])
        if module.crop_rest and preprocessing is not None:  # a rest that fills no patch
            whole = module.grid(preprocessing.image_size) == (rows, columns)
            image_size = preprocessing.image_size if whole else image_size
    elif preprocessing is not None:
        image_size = preprocessing.image_size
    else:
        raise CheckpointError(
            f"format '{format}': needs an image size: neither positions nor preprocessing say one."
        )
    sizes = {**dataclasses.asdict(module.size), "patch_size": patch}
    channels = params["patch_embedding"]["kernel"].shape[0] // (patch[0] * patch[1])
    return {**section_of(MODELS, module), **sizes}, image_size, channels


def _convolutional(
    module: nn.Module, params: Mapping[str, Any], preprocessing: Any, format: str
) -> tuple[dict[str, Any], tuple[int, int], int]:
    """As `_images`; these networks take images of any size, and their weights say none."""
    if preprocessing is None:
        raise CheckpointError(f"format '{format}': needs an image size, which preprocessing says.")
    first = params["stem" if "stem" in params else "stem1"]["kernel"]
    fields = section_of(MODELS, module)
    if isinstance(module, EfficientNet):
        fields |= dict(zip(("width_factor", "depth_factor"), module.factors, strict=True))
    else:
        fields |= {"blocks": module.stages, "growth": module.growth}
    return fields, preprocessing.image_size, first.shape[2]


def _resolved(encoder: Encoder, module: nn.Module) -> dict[str, Any]:
    """The objective's section with every field, which a config need not spell out."""
    section = dict(to_plain(encoder.objective))
    for field in ("teacher", "distillation"):  # these say how it was trained, not what it is
        section.pop(field, None)
    context = {} if encoder.preprocessing is None else encoder.preprocessing.for_objectives
    objective = build(OBJECTIVES, section, "objective", encoder=module, **context)
    return section_of(OBJECTIVES, objective)


def section_of(table: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The config section that `encoders.config.build` makes an equal module from.

    Networks inside it are left out, but for those that are built from a section of their own.

    Raises:
      CheckpointError: the module's class is not in the table.
    """
    [name] = [name for name, kind in table.items() if type(module) is kind] or [None]
    if name is None:
        raise CheckpointError(
            f"{type(module).__name__}: is none of the known kinds, {', '.join(table)}."
        )
    return {"name": name, **_fields_of(table, module)}


def _fields_of(table: Mapping[str, Any], value: Any) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(value):
        if field.name in ("name", "parent", "encoder", "teacher", "vocabulary") or not field.init:
            continue
        entry = getattr(value, field.name)
        if dataclasses.is_dataclass(entry):
            known = type(entry) in table.values()
            entry = section_of(table, entry) if known else _fields_of(table, entry)
        fields[field.name] = entry
    return fields
