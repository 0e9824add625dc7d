"""Writes tests/golden/vision_*.npz: what timm and transformers compute on tiny random networks.

    python -m tools.golden.write_vision        # needs the extra 'parity'

Each file has a network's fields as JSON, its weights under our names, inputs, outputs, hidden
states and gradients, all from PyTorch on the CPU in float32; the tests that read it need none.
"""

from __future__ import annotations

import functools
import json
import pathlib

import numpy as np
import timm.layers
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from tools.golden.convert import convert

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden"
WIDTH, HEADS, DEPTH, MLP = 20, 5, 2, 40
FIELDS = {"width": WIDTH, "depth": DEPTH, "mlp_dim": MLP, "num_heads": HEADS}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter a value that matters: initial zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if not value.requires_grad:
            continue
        with torch.no_grad():
            if value.ndim >= 2 and not name.endswith(
                ("token", "pos_embed", "embeddings", "latent")
            ):
                value.copy_(noise / value[0].numel() ** 0.5)
            elif ("norm" in name and name.endswith("weight")) or "gamma" in name:
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(0.3 * noise)


def images(seed: int, batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """[B, C, H, W] standard normal."""
    shape = (batch, channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numpy(named) -> dict[str, np.ndarray]:
    """Tensors of (name, tensor) pairs as arrays, without those that have no value."""
    return {name: value.detach().numpy() for name, value in named if value is not None}


def gradients_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return numpy((name, value.grad) for name, value in model.named_parameters())


def save(name: str, fields: dict, arrays: dict[str, np.ndarray]) -> None:
    path = DIRECTORY / f"vision_{name}.npz"
    np.savez_compressed(path, fields=json.dumps(fields), **arrays)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def prefixed(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def encoder_case(name: str, model, fields: dict, pixels, run, grid, **options) -> None:
    """Runs a network, differentiates a random linear function of what it returns, and saves all.

    `run` maps (model, pixels) to tokens [B, T, D], pooled [B, D] or None, and hidden states.
    """
    tokens, pooled, hidden = run(model, pixels)
    generator = torch.Generator().manual_seed(7)
    cotangents = {"tokens": torch.randn(tokens.shape, generator=generator) / 10}
    loss = (tokens * cotangents["tokens"]).sum()
    if pooled is not None:
        cotangents["pooled"] = torch.randn(pooled.shape, generator=generator) / 10
        loss = loss + (pooled * cotangents["pooled"]).sum()
    loss.backward()
    outputs = {"tokens": tokens, "pooled": pooled}
    outputs |= {f"hidden/{layer}": value for layer, value in enumerate(hidden)}
    weights = convert(numpy(model.named_parameters()), grid, **options)
    gradients = convert(gradients_of(model), grid, **options, gradients=True)
    save(
        name,
        {**FIELDS, **fields},
        {"images": pixels.permute(0, 2, 3, 1).numpy()}
        | prefixed("params", weights)
        | prefixed("gradients", gradients)
        | prefixed("outputs", numpy(outputs.items()))
        | prefixed("cotangents", numpy(cotangents.items())),
    )


def run_timm(model, pixels):
    pairs = model.forward_intermediates(
        pixels, norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    if isinstance(pairs[0], tuple):
        pairs = [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]
    tokens = model.forward_features(pixels)
    return tokens, model.forward_head(tokens, pre_logits=True), pairs


def run_transformers(model, pixels):
    out = model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    return out.last_hidden_state, None, out.hidden_states[1:]


def timm_vit(**fields) -> VisionTransformer:
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": MLP / WIDTH}
    model = VisionTransformer(num_classes=0, **{**sizes, **fields}).eval()
    randomize(model, seed=1)
    return model


def write_timm() -> None:
    encoder_case(
        "timm_cls",
        timm_vit(img_size=(28, 42), patch_size=14),
        {"patch_size": 14},
        images(0, 3, 28, 42),
        run_timm,
        grid=(2, 3),
    )
    encoder_case(
        "timm_mean",
        timm_vit(
            img_size=(16, 24), patch_size=8, class_token=False, global_pool="avg", qkv_bias=False
        ),
        {
            "patch_size": 8,
            "class_token": False,
            "pool": "mean",
            "norm_after_pool": True,
            "qkv_bias": False,
        },
        images(1, 3, 16, 24),
        run_timm,
        grid=(2, 3),
    )
    # As SigLIP: attention pooling over patches alone, tanh GELU.
    tanh = functools.partial(torch.nn.GELU, approximate="tanh")
    encoder_case(
        "timm_map",
        timm_vit(
            img_size=(16, 24), patch_size=8, class_token=False, global_pool="map", act_layer=tanh
        ),
        {"patch_size": 8, "class_token": False, "pool": "map", "mlp": "gelu_tanh"},
        images(2, 3, 16, 24),
        run_timm,
        grid=(2, 3),
    )
    # As DINOv2 with registers, on another grid than its positions': rows shrink, columns grow.
    encoder_case(
        "timm_dinov2",
        timm_vit(
            img_size=(35, 21),
            patch_size=7,
            reg_tokens=4,
            no_embed_class=True,
            init_values=1e-5,
            mlp_layer=timm.layers.SwiGLUPacked,
            act_layer=torch.nn.SiLU,
            mlp_ratio=2 * MLP / WIDTH,
            dynamic_img_size=True,
        ),
        {"patch_size": 7, "num_registers": 4, "layer_scale": 1e-5, "mlp": "swiglu"},
        images(3, 2, 21, 49),
        run_timm,
        grid=(5, 3),
        swiglu=True,
    )
    # The block of ViT-22B. timm joins the two branches before one drop path; the sum is the same.
    encoder_case(
        "timm_parallel",
        timm_vit(
            img_size=(16, 24),
            patch_size=8,
            block_fn=ParallelScalingBlock,
            qkv_bias=False,
            qk_norm=True,
        ),
        {"patch_size": 8, "parallel": True, "qkv_bias": False, "qk_norm": True},
        images(4, 2, 16, 24),
        run_timm,
        grid=(2, 3),
        splits=lambda last: [MLP, WIDTH, WIDTH, WIDTH] if last == "weight" else [MLP],
    )


def write_rotary() -> None:
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": MLP / WIDTH}
    shared = {"num_classes": 0, "use_rot_pos_emb": True, "use_abs_pos_emb": False, **sizes}
    # timm's ViT with rope and registers: coordinates scaled to a reference grid.
    model = Eva(
        img_size=(16, 24),
        patch_size=8,
        class_token=False,
        num_reg_tokens=2,
        ref_feat_shape=(4, 5),
        init_values=1e-5,
        dynamic_img_size=True,
        **shared,
    ).eval()
    randomize(model, seed=2)
    fields = {
        "patch_size": 8,
        "positions": "rotary2d",
        "rotary": {"reference_grid": (4, 5)},
        "class_token": False,
        "num_registers": 2,
        "layer_scale": 1e-5,
        "pool": "mean",
        "norm_after_pool": True,
    }
    encoder_case("timm_rotary", model, fields, images(5, 2, 32, 24), run_timm, grid=(4, 3))
    # RoPE-ViT: columns first, its own temperature; and an offset, as the Perception Encoder has.
    model = Eva(
        img_size=(16, 24),
        patch_size=8,
        attn_type="rope",
        global_pool="token",
        rope_grid_indexing="xy",
        rope_temperature=100.0,
        rope_grid_offset=1.0,
        **shared,
    ).eval()
    randomize(model, seed=3)
    rotary = {"temperature": 100.0, "order": "xy", "offset": 1.0}
    fields = {"patch_size": 8, "positions": "rotary2d", "rotary": rotary}
    encoder_case("timm_rotary_xy", model, fields, images(6, 2, 16, 24), run_timm, grid=(2, 3))


def write_transformers() -> None:
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        image_size=42,
        patch_size=14,
        layer_norm_eps=1e-12,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    randomize(model, seed=4)
    # Positions of 3x3 patches resized to 2x4, as transformers does it.
    fields = {"patch_size": 14, "norm_eps": 1e-12, "pool": "none", "position_resize": "plain"}
    encoder_case("hf_vit", model, fields, images(7, 2, 28, 56), run_transformers, grid=(3, 3))


def sincos(grid: tuple[int, int], width: int) -> torch.Tensor:
    """MAE's fixed positions, one patch and one frequency at a time; a row of zeros first."""
    rows = [torch.zeros(width)]
    for y in range(grid[0]):
        for x in range(grid[1]):
            omega = [10000 ** (-i / (width // 4)) for i in range(width // 4)]
            angles = torch.tensor([[place * w for w in omega] for place in (x, y)])
            rows.append(torch.stack([angles.sin(), angles.cos()], dim=1).reshape(-1))
    return torch.stack(rows)[None]


def write_mae() -> None:
    decoder = {"width": 12, "depth": 1, "num_heads": 3, "mlp_ratio": 2.0}
    config = ViTMAEConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        image_size=28,
        patch_size=7,
        layer_norm_eps=1e-6,
        decoder_hidden_size=decoder["width"],
        decoder_num_hidden_layers=decoder["depth"],
        decoder_num_attention_heads=decoder["num_heads"],
        decoder_intermediate_size=24,
        mask_ratio=0.75,
    )
    for name, shape, grid, norm_pix in (
        ("hf_mae", (28, 28), (4, 4), True),
        ("hf_mae_wide", (14, 56), (2, 8), False),
    ):
        config.norm_pix_loss = norm_pix
        model = ViTMAEForPreTraining(config).eval()
        # A model that is not loaded from anywhere has zeros for positions until it is asked again.
        model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
        model.vit.embeddings.initialize_weights()
        model.decoder.initialize_weights(16)
        randomize(model, seed=5)
        if shape != (28, 28):
            # transformers only builds square ones, but computes any once its tables are replaced.
            model.vit.embeddings.image_size = shape
            model.vit.embeddings.position_embeddings.data = sincos(grid, WIDTH)
            model.decoder.decoder_pos_embed.data = sincos(grid, decoder["width"])
        pixels = images(8, 3, *shape) * 2 + 1
        noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(9))
        if shape == (28, 28):
            out = model(pixels, noise=noise)
            loss, logits, mask = out.loss, out.logits, out.mask
        else:
            encoded = model.vit(pixels, noise=noise)
            logits = model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
            mask = encoded.mask
            target = model.patchify(pixels, interpolate_pos_encoding=True)
            loss = (((logits - target) ** 2).mean(-1) * mask).sum() / mask.sum()
        loss.backward()

        def ours(arrays, grid=grid, **options):
            kept = {k: v for k, v in arrays.items() if "pos" not in k}
            paths = convert(kept, grid, **options).items()
            return {k if k.startswith("decoder/") else f"encoder/{k}": v for k, v in paths}

        fields = {
            "encoder": {**FIELDS, "patch_size": 7, "positions": "sincos2d", "pool": "none"},
            "decoder": decoder,
            "mask_ratio": 0.75,
            "norm_pix": norm_pix,
        }
        outputs = {"loss": loss, "logits": logits, "mask": mask}
        save(
            name,
            fields,
            {"images": pixels.permute(0, 2, 3, 1).numpy(), "noise": noise.numpy()}
            | prefixed("params", ours(numpy(model.named_parameters())))
            | prefixed("gradients", ours(gradients_of(model), gradients=True))
            | prefixed("outputs", numpy(outputs.items())),
        )


def write_positions() -> None:
    positions = torch.randn(1, 5 * 7, 4, generator=torch.Generator().manual_seed(10))
    arrays = {"positions": positions.reshape(5, 7, 4).numpy()}
    for grid in ((3, 4), (9, 11), (8, 5), (5, 7), (1, 20)):
        size = f"{grid[0]}x{grid[1]}"
        resized = timm.layers.resample_abs_pos_embed(positions, grid, (5, 7), num_prefix_tokens=0)
        arrays[f"antialias/{size}"] = resized.reshape(*grid, 4).numpy()
        square = positions.reshape(1, 5, 7, 4).permute(0, 3, 1, 2)
        plain = torch.nn.functional.interpolate(
            square, size=grid, mode="bicubic", align_corners=False
        )
        arrays[f"plain/{size}"] = plain[0].permute(1, 2, 0).numpy()
    save("positions", {}, arrays)


def write_losses() -> None:
    """Losses of logits, which PyTorch's and DeiT's formulas define."""
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(6, 7, generator=generator) * 3
    teacher = torch.randn(6, 7, generator=generator) * 3
    label = torch.randint(0, 7, (6,), generator=generator)
    functional = torch.nn.functional
    smooth = functional.one_hot(label, 7) * 0.9 + 0.1 / 7
    tempered = [functional.log_softmax(x / 3.0, dim=-1) for x in (logits, teacher)]
    save(
        "losses",
        {},
        numpy(
            {
                "logits": logits,
                "teacher": teacher,
                "label": label,
                "softmax": functional.cross_entropy(
                    logits, label, label_smoothing=0.1, reduction="sum"
                ),
                "sigmoid": functional.binary_cross_entropy_with_logits(
                    logits, smooth, reduction="sum"
                ),
                "soft": 9 * functional.kl_div(*tempered, reduction="sum", log_target=True),
                "hard": functional.cross_entropy(logits, teacher.argmax(-1), reduction="sum"),
            }.items()
        ),
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for write in (
        write_timm,
        write_rotary,
        write_transformers,
        write_mae,
        write_positions,
        write_losses,
    ):
        write()


if __name__ == "__main__":
    main()
