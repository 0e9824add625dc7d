"""open_clip_config.json: its fields, and which of them are supported."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError, nearest

CONFIG = "open_clip_config.json"

# Fields of the config and their defaults; of those in _ONLY no other value is supported.
_MODEL = {
    "embed_dim": None,
    "vision_cfg": None,
    "text_cfg": None,
    "quick_gelu": False,
    "custom_text": False,
    "init_logit_scale": 2.6592600369327783,
    "init_logit_bias": None,
    "nonscalar_logit_scale": False,
}
_SHARED = {
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "output_tokens": False,
}
_SHARED_ONLY = {
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"), (False,)
    ),
    "scale_fc": (False,),
}
_IMAGE = {
    **_SHARED,
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "image_size": 224,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "timm_model_name": None,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
    # Of training, or of what is refused.
    **dict.fromkeys(("patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained")),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads", "pos_embed_type")),
}
_IMAGE_ONLY = {**_SHARED_ONLY, "attentional_pool": (False,), "pool_type": ("tok", "avg")}
_RESNET = {
    "layers": None,
    "width": 64,
    "head_width": 64,
    "patch_size": None,
    "image_size": 224,
    "timm_model_name": None,
}
_TEXT = {
    **_SHARED,
    "width": 512,
    "heads": 8,
    "vocab_size": 49408,
    "context_length": 77,
    "no_causal_mask": False,
    "proj_bias": False,
    "tokenizer_kwargs": None,
    **dict.fromkeys(("hf_tokenizer_name", "tokenizer_mode", "pad_id", "eos_id")),
    **dict.fromkeys(("hf_model_pretrained", "hf_proj_type", "hf_pooler_type")),
}
_TEXT_ONLY = {
    **_SHARED_ONLY,
    "pool_type": ("argmax", "eos", "last", "first"),
    "proj_type": ("linear", "none"),
    "embed_cls": (False,),
    "final_ln_after_pool": (False,),
    "hf_model_name": (None,),
    "ls_init_value": (None,),
}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The config of a directory, with 'model_cfg'.

    Raises:
      CheckpointError: there is none, or it says nothing of the activation.
    """
    ask = (
        f'Write {CONFIG} with {{"model_cfg": {{..., "quick_gelu": true or false}}}}: the weights '
        "do not show which GELU they were trained with, and the wrong one only costs accuracy."
    )
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: has weights, but neither config.json nor {CONFIG}. {ask}")
    config = files.read_json(path / CONFIG)
    model_cfg = config.get("model_cfg")
    if not isinstance(model_cfg, Mapping):
        raise CheckpointError(f"{path / CONFIG}: has no 'model_cfg'. {ask}")
    # open_clip writes preprocess_cfg with every config; one by another hand has to say.
    if "quick_gelu" not in model_cfg and "preprocess_cfg" not in config:
        raise CheckpointError(f"{path / CONFIG}: says nothing of the activation. {ask}")
    return config


def _checked(
    given: Any, defaults: Mapping[str, Any], only: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """A section with defaults filled in.

    Raises:
      CheckpointError: a field is unknown, has a value that is not supported, or another type.
    """
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{where} in {CONFIG} is no section, but {given!r}.")
    for field, value in given.items():
        if field not in defaults and field not in only:
            known = [*defaults, *only]
            raise CheckpointError(f"{where}.{field} is not supported.{nearest(field, known)}")
        if field in only and value not in only[field]:
            allowed = " or ".join(map(repr, only[field]))
            raise CheckpointError(f"{where}.{field}={value!r} is not supported, only {allowed}.")
        if not _fits(field, value, defaults.get(field)):
            raise CheckpointError(f"{where}.{field}={value!r} in {CONFIG} makes no sense.")
    return {**defaults, **{field: values[0] for field, values in only.items()}, **given}


def _fits(field: str, value: Any, default: Any) -> bool:
    """Whether a value is of its default's kind; numbers count something, so they are positive."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if not isinstance(default, int | float):
        return True
    values = value if field in ("image_size", "patch_size") and isinstance(value, list) else [value]
    kind = int if isinstance(default, int) else (int, float)
    return len(values) in (1, 2) and all(
        isinstance(x, kind) and not isinstance(x, bool) and x > 0 for x in values
    )


def sections(
    config: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """model_cfg, vision_cfg and text_cfg with defaults filled in.

    Raises:
      CheckpointError: a field is unknown, or its value not supported.
    """
    model_cfg = _checked(config["model_cfg"], _MODEL, {}, f"{where}, model_cfg")
    if not isinstance(model_cfg["embed_dim"], int):
        raise CheckpointError(f"{where}: model_cfg has no embed_dim.")
    image = model_cfg["vision_cfg"]
    resnet = isinstance(image, Mapping) and isinstance(image.get("layers"), list)
    fields = _RESNET if resnet else _IMAGE
    image = _checked(image, fields, {} if resnet else _IMAGE_ONLY, f"{where}, vision_cfg")
    if resnet and not all(isinstance(n, int) and n > 0 for n in image["layers"]):
        raise CheckpointError(f"{where}: vision_cfg.layers={image['layers']} makes no sense.")
    text = _checked(model_cfg["text_cfg"], _TEXT, _TEXT_ONLY, f"{where}, text_cfg")
    if text["pool_type"] in ("argmax", "eos") and text["no_causal_mask"]:
        raise CheckpointError(
            f"{where}: text_cfg.no_causal_mask=True with pool_type='{text['pool_type']}' is not "
            "supported: the padding behind a text would be read."
        )
    return model_cfg, image, text
