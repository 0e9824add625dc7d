"""Which of timm's architectures are known, and which of their tensors make which parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats.mapping import (
    Rule,
    fused_linear,
    linear,
    norm,
    pair,
    patch_convolution,
    tokens_and_positions,
    vector,
    zeros,
)

# Attention heads of a size, where ARCHITECTURES says nothing else.
NUM_HEADS = {
    "wee": 4,
    "tiny": 3,
    "little": 5,
    "small": 6,
    "medium": 8,
    "mediumd": 8,
    "betwixt": 10,
    "base": 12,
    "so150m": 14,
    "so150m2": 13,
    "large": 16,
    "huge": 16,
    "giant": 16,
    "gigantic": 16,
    "so400m": 16,
    "giantopt": 16,
}

# (regex of the name, what its tensors do not show); the first match wins. Names and values of timm
# 1.0.31; its CLIP, AIMv2, BEiT-3, RADIO, InternViT, parallel and differential ones are left out.
ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_base_patch\d+_gap_\d+", {"num_heads": 16}),
    (r"vit_base_patch\d+_plus_\d+", {"num_heads": 14}),
    (r"vit_giant_patch14_(reg\d_)?(dinov2|tipsv2)", {"num_heads": 24}),
    (r"vit_(?P<size>small|base|large|so400m)_patch14_(reg\d_)?(dinov2|tipsv2)", {}),
    (r"vit_(?P<size>so400m|giantopt)_patch16_siglip(_gap)?_\d+", {"mlp": "gelu_tanh"}),
    (r"vit_(?P<size>large)_patch16_siglip(_gap)?_512", {"mlp": "gelu_tanh"}),
    (r"vit_(?P<size>base)_patch32_siglip(_gap)?_\d+", {"mlp": "gelu_tanh"}),
    (r"vit_(?P<size>base|large|so400m)_patch\d+_siglip(_gap)?_\d+", {}),
    (r"vit_(?P<size>small)_patch16_36x1_224", {}),
    (r"vit_(?P<size>base)_patch16_224_miil", {}),
    (r"vit_(?P<size>[a-z0-9]+)_patch\d+(_reg\d)?(_gap|_map)?_\d+", {}),
    (r"deit3?_(?P<size>[a-z]+)(_distilled)?_patch\d+_\d+", {}),
    (r"flexivit_(?P<size>small|base|large)", {}),
    (r"eva_(?P<size>large)_patch14_\d+", {}),
    (r"test_vit2?", {"num_heads": 2}),
    (r"test_vit3", {"num_heads": 3, "pool_include_prefix": True}),
)


def fields_of_architecture(name: str) -> dict[str, Any] | None:
    """What a name stands for beyond its tensors ('num_heads', 'mlp', ...), or None if unknown."""
    for regex, fields in ARCHITECTURES:
        if match := re.fullmatch(regex, name):
            if "num_heads" in fields:
                return fields
            size = match["size"]
            return {"num_heads": NUM_HEADS[size], **fields} if size in NUM_HEADS else None
    return None


def trunk_rules(
    fields: Mapping[str, Any],
    grid: tuple[int, int],
    channels: int,
    embedded: int,
    distilled: bool = False,
) -> list[Rule]:
    """timm's network against ours; `embedded` prefix tokens have positions there."""
    width, bias = fields["width"], fields["norm_bias"]
    tokens = [("cls_token", 1)] * fields["class_token"]
    registers = fields["num_registers"] - int(distilled)
    tokens += [("dist_token", 1)] * distilled
    tokens += [("reg_token", registers)] * bool(registers)
    final = "fc_norm" if fields["norm_after_pool"] else "norm"
    rules = [
        tokens_and_positions(
            tokens,
            "pos_embed",
            grid,
            width,
            class_token=fields["class_token"],
            embedded=embedded,
        ),
        *patch_convolution(
            "patch_embed.proj", "patch_embedding", channels, pair(fields["patch_size"]), width
        ),
        *norm(final, "norm", width, bias),
    ]
    if fields["pool"] == "map":
        rules += _pooling_rules(fields)
    for layer in range(fields["depth"]):
        rules += _block_rules(f"blocks.{layer}", f"blocks_{layer}", fields)
    return rules


def _block_rules(theirs: str, ours: str, fields: Mapping[str, Any]) -> list[Rule]:
    width, hidden, bias = fields["width"], fields["mlp_dim"], fields["norm_bias"]
    attention, head_dim = f"{ours}/attention", width // fields["num_heads"]
    queries = [f"{attention}/{name}" for name in ("query", "key", "value")]
    rules = [
        *norm(f"{theirs}.norm1", f"{ours}/norm1", width, bias),
        *fused_linear(f"{theirs}.attn.qkv", queries, width, (width,) * 3, fields["qkv_bias"]),
        *linear(f"{theirs}.attn.proj", f"{attention}/out", width, width),
        *norm(f"{theirs}.norm2", f"{ours}/norm2", width, bias),
    ]
    if fields["qk_norm"]:
        for name in ("query", "key"):
            their_norm = f"{theirs}.attn.{name[0]}_norm"
            rules += norm(their_norm, f"{attention}/{name}_norm", head_dim, bias)
    if fields.get("layer_scale") is not None:
        for i in (1, 2):
            rules.append(vector(f"{theirs}.ls{i}.gamma", f"{ours}/layer_scale{i}", (width,)))
    gated = fields["mlp"] == "swiglu"
    first = [f"{ours}/mlp/gate", f"{ours}/mlp/fc1"] if gated else [f"{ours}/mlp/fc1"]
    sizes = (hidden,) * len(first)
    biases = fields["mlp_bias"]
    rules += fused_linear(f"{theirs}.mlp.fc1", first, width, sizes, biases)
    rules += linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2", hidden, width, biases)
    if not biases:
        rules += [zeros(f"{theirs}.mlp.fc1.bias", (sum(sizes),))]
        rules += [zeros(f"{theirs}.mlp.fc2.bias", (width,))]
    return rules


def _pooling_rules(fields: Mapping[str, Any]) -> list[Rule]:
    width, hidden, ours = fields["width"], fields["mlp_dim"], "pooling"
    keys = [f"{ours}/attention/key", f"{ours}/attention/value"]
    return [
        vector("attn_pool.latent", f"{ours}/probe", (1, 1, width), (1, width)),
        *linear("attn_pool.q", f"{ours}/attention/query", width, width),
        *fused_linear("attn_pool.kv", keys, width, (width, width)),
        *linear("attn_pool.proj", f"{ours}/attention/out", width, width),
        *norm("attn_pool.norm", f"{ours}/norm", width),
        *linear("attn_pool.mlp.fc1", f"{ours}/mlp/fc1", width, hidden),
        *linear("attn_pool.mlp.fc2", f"{ours}/mlp/fc2", hidden, width),
    ]
