"""Weights and gradients of timm's and transformers' vision models under this library's names.

Written apart from `encoders.checkpoints.formats` on purpose: that is the importer that users run,
this is the second opinion that the golden numbers rest on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]

# Their name -> ours; 'transposed' kernels, 'split' ones and the rest are told apart below.
_NAMES = [
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embedding."),
    (r"patch_embed\.proj\.", "patch_embedding."),
    (r"(?:vit\.)?embeddings\.cls_token", "cls_token"),
    (r"(?:vit\.)?embeddings\.position_embeddings", "positions"),
    (r"reg_token", "register_tokens"),
    (r"pos_embed", "positions"),
    (r"decoder\.decoder_layers\.(\d+)\.", r"decoder.blocks_\1."),
    (r"decoder\.decoder_(embed|norm)\.", r"decoder.\1."),
    (r"decoder\.decoder_pred\.", "decoder.predict."),
    (r"(?:vit\.)?layers\.(\d+)\.", r"blocks_\1."),
    (r"blocks\.(\d+)\.", r"blocks_\1."),
    (r"(?:vit\.)?layernorm\.", "norm."),
    (r"fc_norm\.", "norm."),
]
_INSIDE = [
    (r"\.attn\.qkv\.", ".attention.query+key+value."),
    (r"\.attn\.q_norm\.", ".attention.query_norm."),
    (r"\.attn\.k_norm\.", ".attention.key_norm."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.q_bias", ".attention.query.bias"),
    (r"\.attn\.v_bias", ".attention.value.bias"),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.o_proj\.", ".attention.out."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1"),
    (r"\.gamma_(\d)$", r".layer_scale\1"),
    # timm's parallel block: everything that reads the norm is one matrix.
    (r"\.in_norm\.", ".norm1."),
    (r"\.in_proj\.", ".mlp.fc1+attention.query+attention.key+attention.value."),
    (r"\.mlp_bias$", ".mlp.fc1.bias"),
    (r"\.q_norm\.", ".attention.query_norm."),
    (r"\.k_norm\.", ".attention.key_norm."),
    (r"\.attn_out_proj\.", ".attention.out."),
    (r"\.mlp_out_proj\.", ".mlp.fc2."),
    (r"attn_pool\.latent", "pooling.probe"),
    (r"attn_pool\.q\.", "pooling.attention.query."),
    (r"attn_pool\.kv\.", "pooling.attention.key+value."),
    (r"attn_pool\.proj\.", "pooling.attention.out."),
    (r"attn_pool\.", "pooling."),
]


def convert(
    theirs: Arrays,
    grid: tuple[int, int],
    *,
    swiglu: bool = False,
    splits: Callable[[str], list[int]] | None = None,
    gradients: bool = False,
) -> Arrays:
    """Renames, transposes and splits a state dict, or gradients under the same names.

    Args:
      theirs: name -> array.
      grid: (rows, columns) of the position embeddings.
      swiglu: whether fc1 is gate and value in one.
      splits: sizes of the parts of a fused matrix that are not equal; by their joined name.
      gradients: a class token's position is added to its weight, but not to its gradient.

    Returns:
      'a/b/c' -> array.
    """
    ours: Arrays = {}
    for name, array in theirs.items():
        new = _rename(name)
        if swiglu and new.endswith(("mlp.fc1.weight", "mlp.fc1.bias")):
            new = new.replace("mlp.fc1", "mlp.gate+fc1")
        for part, value in _split(new, array, splits):
            path, value = _orient(part, value)
            ours[path] = value
    if "positions" in ours:
        positions = ours["positions"][0]
        extra = len(positions) - grid[0] * grid[1]
        if extra and not gradients:
            ours["cls_token"] = ours["cls_token"] + positions[0]
        ours["positions"] = positions[extra:].reshape(*grid, -1)
    return {path: np.ascontiguousarray(value, np.float32) for path, value in ours.items()}


def _rename(name: str) -> str:
    for regex, replacement in _NAMES:
        new, count = re.subn(f"^{regex}", replacement, name)
        if count:
            name = new
            break
    for regex, replacement in _INSIDE:
        name = re.sub(regex, replacement, name)
    return name


def _split(name: str, array: np.ndarray, splits) -> list[tuple[str, np.ndarray]]:
    if "+" not in name:
        return [(name, array)]
    stem, _, last = name.rpartition(".")
    first, *others = stem.split("+")
    depth = 1 if "." not in others[0] else 2
    parent = first.rsplit(".", depth)[0]
    names = [first, *(f"{parent}.{other}" for other in others)]
    sizes = splits(last) if splits else [len(array) // len(names)] * len(names)
    parts = np.split(array, np.cumsum(sizes)[:-1])
    return [(f"{part}.{last}", value) for part, value in zip(names, parts, strict=True)]


def _orient(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    path = name.replace(".", "/")
    if path.endswith("/weight"):
        stem = path.removesuffix("/weight")
        if array.ndim == 4:
            return f"{stem}/kernel", array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
        if array.ndim == 2:
            return f"{stem}/kernel", array.T
        return f"{stem}/scale", array
    if path in ("cls_token", "decoder/mask_token"):
        return path, array.reshape(-1)
    if path in ("register_tokens", "pooling/probe"):
        return path, array.reshape(-1, array.shape[-1])
    return path, array
