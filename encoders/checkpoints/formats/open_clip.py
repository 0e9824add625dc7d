"""open_clip's CLIP, SigLIP and CLIPA, in and out.

A directory as open_clip saves it: open_clip_model.safetensors and open_clip_config.json, with
'model_cfg' and 'preprocess_cfg', and the files of a tokenizer. Image towers are open_clip's own
ViT, OpenAI's ResNets (`open_clip_resnet`) or, on import, one of timm's. The activation is that of
`quick_gelu` in model_cfg, which open_clip leaves out where it is GELU. The weights do not show it,
and the wrong one costs points of accuracy without an error, so weights without a config are
refused.

Refused as well: CoCa, text towers of transformers, attention pooling other than timm's,
and norms and scales inside attention. Left out on import, and listed in the metadata: the numbers
of the config that OpenAI's own files hold beside the weights.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files, open_clip_resnet, timm
from encoders.checkpoints.formats.hf_tokenizer import read_text_preprocessing, write_tokenizer
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    Tensors,
    dump_tensors,
    fused_linear,
    grid_of,
    linear,
    load_tensors,
    norm,
    pair,
    patch_convolution,
    prefixed,
    reshaped,
    split_stats,
    tokens_and_positions,
    vector,
)
from encoders.checkpoints.formats.open_clip_config import CONFIG, read_config, sections
from encoders.checkpoints.formats.towers import (
    MAX_LOGIT_SCALE,
    check_fields,
    own_fields,
    with_own_fields,
)
from encoders.errors import CheckpointError

WEIGHTS = "open_clip_model.safetensors"
_POOLS = {"tok": "cls", "avg": "mean"}
_PREPROCESS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_DROPPABLE = {
    r"input_resolution|context_length|vocab_size": "a number of the config, not a weight",
    r".*\.num_batches_tracked": "how many batches a running statistic is of",
    r"(text\.)?attn_mask": "the mask of causal attention, not a weight",
}


def holds(path: pathlib.Path) -> bool:
    """Whether a directory is to be read as one of open_clip's.

    Some hold both its files and those of transformers, which then come first.
    """
    if (path / files.CONFIG).is_file():
        others = (path / files.WEIGHTS).is_file() or (path / files.INDEX).is_file()
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file() and not others
    return (path / CONFIG).is_file() or any(path.glob("*.safetensors"))


# --- in -------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> Imported:
    """Reads a directory of open_clip_config.json and open_clip_model.safetensors.

    Raises:
      CheckpointError: nothing says the activation; an option is not supported; tensors are missing,
        unknown or of another shape; the weights are a pickle, or damaged.
    """
    config, where = read_config(path), f"{path} (open_clip)"
    model_cfg, image_cfg, text_cfg = sections(config, where)
    tensors, quick = files.read_tensors(path, WEIGHTS), model_cfg["quick_gelu"]
    image_size = pair(image_cfg["image_size"])
    trunk = image_cfg["timm_model_name"]
    own = trunk is None
    resnet = isinstance(image_cfg["layers"], list)
    if resnet:
        image, projection = open_clip_resnet.section(image_cfg, where), "linear_bias"
        rules = open_clip_resnet.rules(image, model_cfg["embed_dim"])
    elif own:
        image = _image_section(image_cfg, quick, where)
        rules = _image_rules(image, grid_of(image_size, image["patch_size"]))
        projection = "linear"
    else:
        image, rules, projection = _timm_tower(tensors, image_cfg, image_size, where)
    if not resnet and any(
        n % p for n, p in zip(image_size, pair(image["patch_size"]), strict=True)
    ):
        image["crop_rest"] = True
    text = _text_section(text_cfg, quick, where)
    model = {
        "name": "towers",
        "image": image,
        "text": text,
        "embedding_dim": model_cfg["embed_dim"],
        "image_projection": projection,
        "text_projection": _text_projection(text_cfg),
        "logit_scale": float(model_cfg["init_logit_scale"]),
        "logit_bias": model_cfg["init_logit_bias"],
        "max_logit_scale": None if "logit_bias" in tensors else MAX_LOGIT_SCALE,
    }
    model = with_own_fields(model, config)
    prefix = "text." if any(name.startswith("text.") for name in tensors) else ""
    shape = (1,) if model_cfg["nonscalar_logit_scale"] else ()
    rules = [*rules, *_text_rules(model, prefix), *_number_rules(model, shape)]
    if not resnet:
        rules += _projection_rules(model, own)
    tree, dropped = load_tensors(tensors, rules, _DROPPABLE, where)
    params, stats = split_stats(tree)
    preprocessing, reason = _preprocessing(path, config, image_size, text_cfg)
    metadata = {
        "format": "open_clip",
        "architecture": "ModifiedResNet" if resnet else trunk or "VisionTransformer",
        "class_names": None,
        "dropped": dropped,
        "no_preprocessing": reason,
    }
    return Imported(model, params, preprocessing, None, {}, metadata, stats)


def _tower_fields(config: Mapping[str, Any], quick: bool, where: str) -> dict[str, Any]:
    """Activation and eps of a tower of open_clip's own."""
    act, norm_kwargs = dict(config["act_kwargs"] or {}), dict(config["norm_kwargs"] or {})
    mlp = (
        "quick_gelu"
        if quick
        else {"none": "gelu", "tanh": "gelu_tanh"}.get(act.pop("approximate", "none"))
    )
    eps = float(norm_kwargs.pop("eps", 1e-5))
    if mlp is None or act or norm_kwargs or (quick and config["act_kwargs"]):
        given = {"act_kwargs": config["act_kwargs"], "norm_kwargs": config["norm_kwargs"]}
        raise CheckpointError(f"{where}: {given} is not supported.")
    return {
        "width": config["width"],
        "depth": config["layers"],
        "mlp_dim": int(config["width"] * config["mlp_ratio"]),
        "mlp": mlp,
        "norm_eps": eps,
    }


def _image_section(config: Mapping[str, Any], quick: bool, where: str) -> dict[str, Any]:
    patch = pair(config["patch_size"])
    scale = config["ls_init_value"]
    return {
        "name": "vit",
        **_tower_fields(config, quick, f"{where}, vision_cfg"),
        "num_heads": config["width"] // config["head_width"],
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "patch_bias": False,
        "pre_norm": not config["no_ln_pre"],
        "pool": _POOLS[config["pool_type"]],
        "norm_after_pool": config["final_ln_after_pool"],
        "layer_scale": None if scale is None else float(scale),
    }


def _text_section(config: Mapping[str, Any], quick: bool, where: str) -> dict[str, Any]:
    return {
        "name": "clip_text",
        **_tower_fields(config, quick, f"{where}, text_cfg"),
        "num_heads": config["heads"],
        "vocab_size": config["vocab_size"],
        "max_length": config["context_length"],
        "causal": not config["no_causal_mask"],
        "pool": "cls" if config["pool_type"] == "first" else "last",
    }


def _text_projection(config: Mapping[str, Any]) -> str:
    if config["proj_type"] == "none":
        return "none"
    return "linear_bias" if config["proj_bias"] else "linear"


def _timm_tower(
    tensors: Tensors, config: Mapping[str, Any], image_size: tuple[int, int], where: str
) -> tuple[dict[str, Any], list[Rule], str]:
    """A tower of timm's: model section, rules, and the projection after it."""
    start = "visual.trunk."
    inner = {n.removeprefix(start): x for n, x in tensors.items() if n.startswith(start)}
    name, pool = config["timm_model_name"], config["timm_pool"]
    given = {} if pool in (None, "") else {"global_pool": pool}
    section, rules, _ = timm.trunk(inner, name, given, {}, image_size, where)
    projection = config["timm_proj"] or "none"
    if projection not in ("none", "linear"):
        raise CheckpointError(f"{where}: vision_cfg.timm_proj '{projection}' is not supported.")
    if projection == "linear" and config["timm_proj_bias"]:
        projection = "linear_bias"
    return section, prefixed(rules, start, "image/"), projection


def _preprocessing(
    path: pathlib.Path,
    config: Mapping[str, Any],
    image_size: tuple[int, int],
    text_cfg: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, str | None]:
    """(section, None), or (None, why there is none)."""
    given = {**_PREPROCESS, **(config.get("preprocess_cfg") or {})}
    if given["resize_mode"] not in ("shortest", "squash"):
        return None, f"its resize_mode is '{given['resize_mode']}'"
    cleaning = dict(text_cfg["tokenizer_kwargs"] or {})
    clean = cleaning.pop("clean", "whitespace")
    if cleaning or clean not in ("whitespace", "lower", "canonicalize"):
        return None, f"its tokenizer_kwargs are {text_cfg['tokenizer_kwargs']}"
    if text_cfg["tokenizer_mode"]:
        return None, f"its tokenizer_mode is '{text_cfg['tokenizer_mode']}'"
    length = text_cfg["context_length"]
    text, reason = read_text_preprocessing(path, text_cfg["vocab_size"], length, length)
    if text is None:
        return None, reason
    del text["name"]
    text["attend_padding"] = text_cfg["pool_type"] in ("last", "first")
    text["lowercase"] = clean != "whitespace"
    text["strip_punctuation"] = clean == "canonicalize"
    image = {
        "image_size": pair(given.get("size") or image_size),
        "channels": 3,
        "mean": tuple(map(float, given["mean"])),
        "std": tuple(map(float, given["std"])),
        "interpolation": given["interpolation"],
        "crop_fraction": 1.0,
        "keep_aspect": given["resize_mode"] == "shortest",
    }
    return {"name": "image_text", "image": image, "text": text}, None


# --- out ------------------------------------------------------------------------------------------


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes open_clip_config.json, open_clip_model.safetensors and the tokenizer's files.

    Raises:
      CheckpointError: something that open_clip's own towers have not, named by its field.
    """
    fields = exported.fields
    image, text = fields["image"], fields["text"]
    resnet = image["name"] == "clip_resnet"
    only = {
        "image.class_token": True,
        "image.patch_bias": False,
        "image.pool": list(_POOLS.values()),
        "text.pool": "last",
        "image_projection": "linear",
    }
    if resnet:
        only = {
            "image.pool": "attention",
            "text.pool": "last",
            "image_projection": "linear_bias",
        }
    check_fields(fields, only, "format 'open_clip'", vit=not resnet)
    if exported.channels != 3:
        raise _refuse("image.channels", exported.channels, "images have three there")
    quick = text["mlp"] == "quick_gelu"
    if not resnet and quick != (image["mlp"] == "quick_gelu"):
        raise _refuse("text.mlp", text["mlp"], "both towers have quick_gelu there, or none")
    dim, scale = fields["embedding_dim"], exported.params["logit_scale"]
    whole = not text["causal"]
    if exported.preprocessing is not None:
        whole = exported.preprocessing["text"]["attend_padding"]
    if not (whole or text["causal"]):
        raise _refuse("text.causal", False, "padding is read there; set attend_padding=True")
    model_cfg = {
        "embed_dim": dim,
        "quick_gelu": quick,
        "init_logit_scale": fields["logit_scale"],
        "init_logit_bias": fields["logit_bias"],
        "nonscalar_logit_scale": False,
        "vision_cfg": open_clip_resnet.config_of(exported) if resnet else _vision_cfg(exported),
        "text_cfg": {
            **_tower_config(text),
            "heads": text["num_heads"],
            "vocab_size": text["vocab_size"],
            "context_length": text["max_length"],
            "no_causal_mask": not text["causal"],
            "pool_type": "last" if whole else "argmax",
            "proj_type": "none" if fields["text_projection"] == "none" else "linear",
            "proj_bias": fields["text_projection"] == "linear_bias",
        },
    }
    if resnet:
        rules = open_clip_resnet.rules(image, dim)
    else:
        rules = _image_rules(image, grid_of(exported.image_size, image["patch_size"]))
        rules += _projection_rules(fields)
    rules += [*_text_rules(fields, ""), *_number_rules(fields, scale.shape)]
    tensors = dump_tensors(exported.params, rules, "open_clip")
    config = {
        "model_cfg": model_cfg,
        "preprocess_cfg": _preprocess_cfg(exported),
        "encoders": own_fields(fields, "max_logit_scale"),
    }
    files.write_json(directory / CONFIG, config)
    files.write_tensors(directory / WEIGHTS, tensors)
    if exported.preprocessing is not None:
        write_tokenizer(directory, exported.preprocessing["text"])


def _vision_cfg(exported: Exported) -> dict[str, Any]:
    image = exported.fields["image"]
    [pool] = [name for name, ours in _POOLS.items() if ours == image["pool"]]
    return {
        **_tower_config(image),
        "head_width": image["width"] // image["num_heads"],
        "image_size": list(exported.image_size),
        "patch_size": list(pair(image["patch_size"])),
        "no_ln_pre": not image["pre_norm"],
        "final_ln_after_pool": image["norm_after_pool"],
        "pool_type": pool,
        "ls_init_value": image["layer_scale"],
    }


def _refuse(field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(
        f"format 'open_clip': model.{field}={value!r} cannot be expressed: {why}."
    )


def _tower_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    width, hidden = fields["width"], fields["mlp_dim"]
    ratio = hidden / width
    config = {
        "width": width,
        "layers": fields["depth"],
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
    }
    if fields["norm_eps"] != 1e-5:
        config["norm_kwargs"] = {"eps": fields["norm_eps"]}
    if fields["mlp"] == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    elif fields["mlp"] not in ("gelu", "quick_gelu"):
        raise _refuse("mlp", fields["mlp"], "there it is a GELU")
    return config


def _preprocess_cfg(exported: Exported) -> dict[str, Any]:
    if exported.preprocessing is None:
        return {"size": list(exported.image_size)}
    image = exported.preprocessing["image"]
    if image["crop_fraction"] != 1:
        raise CheckpointError(
            f"format 'open_clip': preprocessing.image.crop_fraction={image['crop_fraction']} "
            "cannot be expressed: there it is 1.0."
        )
    return {
        "size": list(image["image_size"]),
        "mode": "RGB",
        "mean": list(image["mean"]),
        "std": list(image["std"]),
        "interpolation": image["interpolation"],
        "resize_mode": "shortest" if image["keep_aspect"] else "squash",
    }


# --- tensors --------------------------------------------------------------------------------------


def _image_rules(fields: Mapping[str, Any], grid: tuple[int, int]) -> list[Rule]:
    width, patches = fields["width"], grid[0] * grid[1]
    positions = tokens_and_positions(
        [("class_embedding", 1)], "positional_embedding", grid, width, embedded=1
    )
    patch = pair(fields["patch_size"])
    rules = [
        reshaped(positions, (width,), (1 + patches, width)),
        *patch_convolution("conv1", "patch_embedding", 3, patch, width, bias=False),
        *(norm("ln_pre", "norm_pre", width) if fields["pre_norm"] else []),
        *_blocks(fields),
        *norm("ln_post", "norm", width),
    ]
    return prefixed(rules, "visual.", "image/")


def _text_rules(model: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Text tower and its projection, whose names begin with `prefix`."""
    fields, dim = model["text"], model["embedding_dim"]
    width = fields["width"]
    rules = [
        vector("token_embedding.weight", "embeddings/words", (fields["vocab_size"], width)),
        vector("positional_embedding", "embeddings/positions", (fields["max_length"], width)),
        *_blocks(fields),
        *norm("ln_final", "norm", width),
    ]
    projection = {
        "none": [],
        "linear": [vector("text_projection", "text_projection/kernel", (width, dim))],
        "linear_bias": linear("text_projection", "text_projection", width, dim),
    }[model["text_projection"]]
    return [*prefixed(rules, prefix, "text/"), *prefixed(projection, prefix, "")]


def _number_rules(model: Mapping[str, Any], shape: tuple[int, ...]) -> list[Rule]:
    """The numbers of the logits, which are of that shape there."""
    names = ["logit_scale"] + ["logit_bias"] * (model["logit_bias"] is not None)
    return [vector(name, name, shape, ()) for name in names]


def _projection_rules(model: Mapping[str, Any], own: bool = True) -> list[Rule]:
    """The projection of a ViT's images; `own`: of open_clip's rather than timm's."""
    width, dim, projection = model["image"]["width"], model["embedding_dim"], "image_projection"
    if own:
        return [vector("visual.proj", f"{projection}/kernel", (width, dim))]
    if model[projection] == "none":
        return []
    bias = model[projection] == "linear_bias"
    return linear("visual.head.proj", projection, width, dim, bias)


def _blocks(fields: Mapping[str, Any]) -> list[Rule]:
    width, hidden, rules = fields["width"], fields["mlp_dim"], []
    for layer in range(fields["depth"]):
        theirs, ours = f"transformer.resblocks.{layer}", f"blocks_{layer}"
        parts = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        rules += norm(f"{theirs}.ln_1", f"{ours}/norm1", width)
        rules += fused_linear(f"{theirs}.attn.in_proj", parts, width, (width,) * 3, joint="_")
        rules += linear(f"{theirs}.attn.out_proj", f"{ours}/attention/out", width, width)
        rules += norm(f"{theirs}.ln_2", f"{ours}/norm2", width)
        rules += linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp/fc1", width, hidden)
        rules += linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp/fc2", hidden, width)
        if fields.get("layer_scale") is not None:
            for i in (1, 2):
                rules.append(vector(f"{theirs}.ls_{i}.gamma", f"{ours}/layer_scale{i}", (width,)))
    return rules
