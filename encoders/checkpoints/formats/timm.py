"""timm's vision transformers, in and out: vit_*, deit_*, deit3_*, flexivit_* and eva_large_*.

ResNets and EfficientNets, too, which `timm_convolutions` knows.

A directory as timm saves it: model.safetensors, and config.json with 'architecture', 'model_args'
and 'pretrained_cfg'. Widths, tokens, norms and biases are read off the tensors; what they do not
show, such as the number of heads and the activation, belongs to the architecture's name.

Refused: networks with a norm before the blocks (CLIP), without a final norm (RADIO, InternViT),
with RMS norms, parallel or differential blocks, attention pooling that skips prefix tokens, and
rotary positions (other classes in timm). Left out on import, and listed in the metadata: the two
heads of a distilled DeiT, whose answers are averaged.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats import files, timm_convolutions
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    dump_tensors,
    grid_of,
    linear,
    load_tensors,
    pair,
    rename,
    split_stats,
)
from encoders.checkpoints.formats.timm_rules import NUM_HEADS, fields_of_architecture, trunk_rules
from encoders.errors import CheckpointError, nearest
from encoders.layers.position import sincos2d

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_POOLS = {"token": "cls", "avg": "mean", "map": "map", "": "none"}

# Arguments that change nothing here: read off the tensors, or about training only.
_VISIBLE = {
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "qk_norm", "init_values", "act_layer"),
    *("class_token", "no_embed_class", "reg_tokens", "global_pool", "fc_norm"),
    *("pool_include_prefix", "dynamic_img_size", "strict_img_size", "weight_init", "fix_init"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate",),
}
# Arguments that must be left at these values.
_FIXED = {
    "pre_norm": False,
    "final_norm": True,
    "proj_bias": True,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "dynamic_img_pad": False,
    "pos_embed": "learn",
    "norm_layer": "layernorm",
    "attn_layer": "attn",
    "use_naflex": False,
}
_DROPPABLE = {r"head(_dist)?\.(weight|bias)": "heads of class and distillation token"}
_RENAMES = ((r"\.gamma_([12])$", r".ls\1.gamma"),)  # DeiT III as its authors published it
_NORM_EPS = 1e-6  # timm's default; architectures with another are not supported

# --- in -------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> Imported:
    """Reads a directory of config.json and model.safetensors.

    Raises:
      CheckpointError: the architecture or an argument is not supported; tensors are missing,
        unknown or of another shape; the weights are a pickle, or damaged.
    """
    config = files.read_json(path / files.CONFIG)
    pretrained = config.get("pretrained_cfg", config)
    name = config["architecture"].partition(".")[0]
    where = f"{path} ({name})"
    arguments = config.get("model_args") or {}
    tensors = rename(files.read_tensors(path), _RENAMES, where)
    image = arguments.get("img_size") or pretrained.get("input_size", (3, 224, 224))[1:]
    if name in timm_convolutions.NAMES:
        network = timm_convolutions.network(
            name,
            arguments,
            tensors,
            arguments.get("in_chans", 3),
            config.get("encoders", {}),
            where,
        )
        model, rules, channels, _, classifier, width = network
        droppable = timm_convolutions.DROPPABLE
    else:
        _check_name(name, where)
        _check_arguments(arguments, where)
        model, rules, channels = trunk(tensors, name, arguments, config, pair(image), where)
        classifier, width = "head", model["width"]
        droppable = _DROPPABLE if "dist_token" in tensors else {}
    head_rules, objective = [], None
    if f"{classifier}.weight" in tensors and "dist_token" not in tensors:
        classes = int(tensors[f"{classifier}.weight"].shape[0])
        objective = {"name": "classification", "num_classes": classes}
        # Beside the network, one of whose parts may be called 'head' as well.
        head_rules = linear(classifier, "classifier", width, classes)
    tree, dropped = load_tensors(tensors, [*rules, *head_rules], droppable, where)
    metadata = {
        "format": "timm",
        "architecture": config["architecture"],
        "class_names": _class_names(config, pretrained, objective),
        "dropped": dropped,
        "no_preprocessing": None,
    }
    heads = {"head": tree.pop("classifier")} if objective else {}
    params, stats = split_stats(tree)
    preprocessing, metadata["no_preprocessing"] = _preprocessing(pretrained, channels, pair(image))
    return Imported(model, params, preprocessing, objective, heads, metadata, stats)


def trunk(
    tensors: Mapping[str, np.ndarray],
    name: str,
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    image_size: tuple[int, int],
    where: str,
) -> tuple[dict[str, Any], list[Rule], int]:
    """A ViT by its tensors, the architecture's name, and the arguments it was made with.

    Returns:
      The model section, the rules of its parameters, and the channels of images.

    Raises:
      CheckpointError: the architecture is not supported, or the tensors are of no ViT.
    """
    _check_name(name, where)
    for tensor in ("patch_embed.proj.weight", "blocks.0.mlp.fc2.weight"):
        if tensor not in tensors:
            raise CheckpointError(f"{where}: has no tensor '{tensor}', so it is no ViT of timm's.")
    model = _model_section(tensors, fields_of_architecture(name), arguments, config, where)
    channels = tensors["patch_embed.proj.weight"].shape[1]
    grid = grid_of(image_size, model["patch_size"])
    fields = {"norm_bias": True, "mlp_bias": True, "class_token": True, "num_registers": 0}
    fields |= {"norm_after_pool": False, "pool": "cls", "qk_norm": False, **model}
    embedded = 0
    if "pos_embed" in tensors and tensors["pos_embed"].ndim == 3:
        extra = tensors["pos_embed"].shape[1] - grid[0] * grid[1]
        prefix = int(fields["class_token"]) + fields["num_registers"]
        embedded = prefix if extra == prefix else 0
    return model, trunk_rules(fields, grid, channels, embedded, "dist_token" in tensors), channels


def _check_name(name: str, where: str) -> None:
    if fields_of_architecture(name) is None:
        raise CheckpointError(
            f"{where}: architecture '{name}' is not supported; supported are resnet50, "
            "efficientnet_b0, tf_efficientnet_b0 and their sizes, and ViTs with names like "
            "vit_base_patch16_224, vit_small_patch14_reg4_dinov2, vit_base_patch16_siglip_224, "
            "vit_medium_patch16_reg4_gap_256, deit_..., deit3_... and flexivit_..., in the sizes "
            f"{', '.join(NUM_HEADS)}."
        )


def _check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    for name, value in arguments.items():
        if name in _VISIBLE:
            continue
        if name not in _FIXED:
            raise CheckpointError(
                f"{where}: model_args.{name} is not supported.{nearest(name, _VISIBLE)}"
            )
        plain = value.replace("_", "").lower() if isinstance(value, str) else value
        if value is not None and plain not in (_FIXED[name], ""):
            raise CheckpointError(
                f"{where}: model_args.{name}={value!r} is not supported, only {_FIXED[name]!r}."
            )


def _model_section(
    tensors: Mapping[str, np.ndarray],
    known: Mapping[str, Any],
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    width, _, *patch = tensors["patch_embed.proj.weight"].shape
    activation = arguments.get("act_layer")
    if activation is not None and activation not in ACTIVATIONS and activation != "silu":
        raise CheckpointError(
            f"{where}: model_args.act_layer '{activation}' is not supported."
            f"{nearest(activation, ACTIVATIONS)}"
        )
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    gated = tensors["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden
    if activation is not None and gated != (activation == "silu"):
        raise CheckpointError(
            f"{where}: model_args.act_layer '{activation}' is not supported: a gated MLP has "
            "'silu', and only a gated one."
        )
    blocks = {re.match(r"blocks\.(\d+)\.", name) for name in tensors} - {None}
    registers = sum(tensors[n].shape[1] for n in ("dist_token", "reg_token") if n in tensors)
    section = {
        "name": "vit",
        "width": int(width),
        "depth": arguments.get("depth", 1 + max(int(block[1]) for block in blocks)),
        "mlp_dim": int(hidden),
        "num_heads": arguments.get("num_heads", known["num_heads"]),
        "patch_size": int(patch[0]) if patch[0] == patch[1] else tuple(map(int, patch)),
        "class_token": "cls_token" in tensors,
        "num_registers": int(registers),
        "pool": _pool(tensors, {**known, **arguments}, config, where),
        "norm_after_pool": "fc_norm.weight" in tensors,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "norm_eps": _NORM_EPS,
        "mlp": "swiglu" if gated else ACTIVATIONS.get(activation, known.get("mlp", "gelu")),
        **config.get("encoders", {}),  # what timm has no word for; see `write`
    }
    if "blocks.0.ls1.gamma" in tensors:
        # The initial value; any number will do for weights that are there.
        section["layer_scale"] = float(arguments.get("init_values") or 1e-5)
    return section


def _pool(
    tensors: Mapping[str, Any], arguments: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> str:
    pool = arguments.get("global_pool", config.get("global_pool"))
    if "attn_pool.latent" in tensors:
        prefix = "cls_token" in tensors or "reg_token" in tensors
        if prefix and not arguments.get("pool_include_prefix"):
            raise CheckpointError(
                f"{where}: attention pooling that skips prefix tokens is not supported."
            )
        return "map"
    if pool is None:
        pool = "token" if "cls_token" in tensors and "fc_norm.weight" not in tensors else "avg"
    if pool not in _POOLS:
        raise CheckpointError(f"{where}: global_pool '{pool}' is not supported.")
    if pool == "avg" and arguments.get("pool_include_prefix"):
        raise CheckpointError(f"{where}: averaging prefix tokens too is not supported.")
    return _POOLS[pool]


def _class_names(
    config: Mapping[str, Any], pretrained: Mapping[str, Any], objective: Any
) -> list[str] | None:
    names = config.get("label_names") or pretrained.get("label_names")
    if not isinstance(names, list) or objective is None:
        return None
    return names if len(names) == objective["num_classes"] else None


def _preprocessing(
    pretrained: Mapping[str, Any], channels: int, image_size: tuple[int, int]
) -> tuple[dict[str, Any] | None, str | None]:
    """(section, None), or (None, why there is none)."""
    missing = [key for key in ("mean", "std", "interpolation", "crop_pct") if key not in pretrained]
    if missing:
        return None, f"its config.json has no {' and no '.join(missing)} in pretrained_cfg"
    mode = pretrained.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        return None, f"its crop_mode is '{mode}'"
    mean, std = (tuple(map(float, pretrained[key])) for key in ("mean", "std"))
    if len(mean) != channels or len(std) != channels:
        return None, f"its mean and std are not of {channels} channels"
    section = {
        "name": "image",
        "image_size": image_size,
        "channels": channels,
        "mean": mean,
        "std": std,
        "interpolation": pretrained["interpolation"],
        "crop_fraction": float(pretrained["crop_pct"]),
        "keep_aspect": mode == "center",
    }
    return section, None


# --- out ------------------------------------------------------------------------------------------


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json and model.safetensors; timm loads 'local-dir:DIRECTORY'.

    The architecture is a name that timm knows, all of whose sizes 'model_args' override. Prefix
    tokens have no position of their own (no_embed_class), missing biases become zeros, and fixed
    positions a learned table of the same numbers.

    Raises:
      CheckpointError: something that timm's ViT does not have, named by its field.
    """
    fields, image = exported.fields, exported.image_size
    _check_objective(exported)
    if fields["name"] in ("resnet", "efficientnet"):
        _write_convolutions(directory, exported)
        return
    if fields["name"] != "vit":
        raise _refuse("model.name", fields["name"], "it has no such network")
    _check_fields(exported)
    patch, hidden = pair(fields["patch_size"]), fields["mlp_dim"]
    grid = grid_of(image, patch)
    rules = trunk_rules(fields, grid, exported.channels, 0)
    params = {**exported.params}
    if fields["positions"] == "sincos2d":
        params["positions"] = sincos2d(grid, fields["width"], fields["sincos"])
    elif fields["positions"] == "none":
        params["positions"] = np.zeros((*grid, fields["width"]), np.float32)
    classes = _classes(exported)
    if classes:
        rules += linear("head", "head", fields["width"], classes)
        params |= exported.objective_params
    gated = fields["mlp"] == "swiglu"
    [pool] = [name for name, ours in _POOLS.items() if ours == fields["pool"]]
    arguments = {
        "img_size": list(image),
        "patch_size": list(patch),
        "in_chans": exported.channels,
        "num_classes": classes,
        "global_pool": pool,
        "embed_dim": fields["width"],
        "depth": fields["depth"],
        "num_heads": fields["num_heads"],
        "mlp_ratio": _mlp_ratio(fields["width"], hidden * (2 if gated else 1)),
        "qkv_bias": fields["qkv_bias"],
        "qk_norm": fields["qk_norm"],
        "init_values": fields["layer_scale"],
        "class_token": fields["class_token"],
        "no_embed_class": True,
        "reg_tokens": fields["num_registers"],
        "fc_norm": fields["norm_after_pool"],
        "pool_include_prefix": pool == "map",
        "act_layer": "silu" if gated else fields["mlp"],
    }
    config = {
        # The giant DINOv2 is the one whose MLP is gated, which no argument can say.
        "architecture": "vit_giant_patch14_dinov2" if gated else "vit_base_patch16_224",
        "num_classes": classes,
        "num_features": fields["width"],
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": _pretrained_cfg(exported, classes),
        "encoders": {"position_resize": fields["position_resize"]},
    }
    if classes and exported.class_names:
        config["label_names"] = list(exported.class_names)
    tensors = dump_tensors(params, rules, "timm VisionTransformer")
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def _write_convolutions(directory: pathlib.Path, exported: Exported) -> None:
    name, arguments, own, network = timm_convolutions.described(exported)
    classes, rules, params = _classes(exported), network.rules, exported.params
    tensors = dump_tensors(params, rules, f"timm {name}")
    if classes:
        head = linear(network.classifier, "head", network.width, classes)
        tensors |= dump_tensors(exported.objective_params, head, f"timm {name}")
    config = {
        "architecture": name,
        "num_classes": classes,
        "num_features": network.width,
        "global_pool": arguments["global_pool"],
        "model_args": {**arguments, "num_classes": classes},
        "pretrained_cfg": {
            **_pretrained_cfg(exported, classes),
            "fixed_input_size": False,
            "first_conv": network.first_conv,
            "classifier": network.classifier,
        },
        "encoders": own,
    }
    if classes and exported.class_names:
        config["label_names"] = list(exported.class_names)
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def _classes(exported: Exported) -> int:
    return 0 if exported.objective is None else exported.objective["num_classes"]


def _check_fields(exported: Exported) -> None:
    fields = exported.fields
    for field, allowed, why in (
        ("positions", ("learned", "sincos2d", "none"), "its rotary ViTs are another class"),
        ("parallel", (False,), "its parallel blocks are laid out otherwise"),
        ("norm_eps", (_NORM_EPS,), "its config has no field for it"),
    ):
        if fields[field] not in allowed:
            raise _refuse(field, fields[field], why)
    if fields["pool"] == "none" and fields["norm_after_pool"]:
        raise _refuse("norm_after_pool", True, "there is no pooled vector to normalise")
    if fields["pool"] == "map" and fields["mlp"] == "swiglu":
        raise _refuse("pool", "map", "attention pooling beside a gated MLP uses another activation")
    if fields["layer_scale"] == 0:
        raise _refuse("layer_scale", 0.0, "zero means none there")


def _check_objective(exported: Exported) -> None:
    objective = exported.objective
    if objective is None:
        return
    if objective["name"] != "classification" or "distillation_head" in exported.objective_params:
        raise _refuse("objective", objective["name"], "only a single linear classifier has a place")
    if objective.get("linear_probe"):
        raise _refuse("objective.linear_probe", True, "its classifier reads features as they are")


def _refuse(field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"format 'timm': {field}={value!r} cannot be expressed: {why}.")


def _mlp_ratio(width: int, hidden: int) -> float:
    """The ratio for which int(width * ratio) is exactly `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _pretrained_cfg(exported: Exported, classes: int) -> dict[str, Any]:
    config = {
        "input_size": [exported.channels, *exported.image_size],
        "fixed_input_size": True,
        "pool_size": None,
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if (fields := exported.preprocessing) is not None:
        config |= {
            "interpolation": fields["interpolation"],
            "crop_pct": fields["crop_fraction"],
            "crop_mode": "center" if fields["keep_aspect"] else "squash",
            "mean": list(fields["mean"]),
            "std": list(fields["std"]),
        }
    return config
