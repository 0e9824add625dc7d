"""Writes tests/golden/convolutions: a tiny ALIGN, a CLIP with a ResNet, and two ResNets.

    python -m tools.golden.write_convolutions [CASE ...]

Needs the extra 'parity'. Every case is a directory that its project saved, and expected.npz: the
map that every stage ends with, vectors, of pairs also logits and the loss, and gradients under the
names of the weights, with running statistics; and the last map in training, with the batch's own.
From PyTorch on the CPU in float32, in images of odd sizes.
"""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

from tools.golden.inputs import picture
from tools.golden.pair_models import BATCH, LENGTH, VOCABULARY, open_clip
from tools.golden.write_pairs import captions

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "convolutions"
# case -> (height, width): odd where the network takes any size, a square for positions.
SIZES = {
    "hf_align": (65, 47),
    "open_clip_rn": (64, 64),
    "hf_resnet": (65, 47),
    "hf_resnet_basic": (41, 64),
}
# Of every kind of tensor one.
_GRADIENTS = (
    "temperature",
    "logit_scale",
    "text_projection.weight",
    "vision_model.embeddings.convolution.weight",
    "vision_model.encoder.blocks.3.depthwise_conv.depthwise_conv.weight",
    "vision_model.encoder.blocks.3.squeeze_excite.reduce.weight",
    "vision_model.encoder.blocks.3.expansion.expand_bn.weight",
    "vision_model.encoder.blocks.9.projection.project_bn.bias",
    "text_model.encoder.layer.1.intermediate.dense.weight",
    "visual.conv1.weight",
    "visual.bn3.bias",
    "visual.layer2.0.downsample.0.weight",
    "visual.layer3.0.conv2.weight",
    "visual.attnpool.positional_embedding",
    "visual.attnpool.k_proj.weight",
    "visual.attnpool.c_proj.bias",
    "embedder.embedder.convolution.weight",
    "encoder.stages.1.layers.0.shortcut.convolution.weight",
    "encoder.stages.2.layers.0.layer.1.convolution.weight",
    "encoder.stages.3.layers.0.layer.1.normalization.weight",
)


def _align() -> torch.nn.Module:
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 15,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": LENGTH,
    }
    image = {"width_coefficient": 0.1, "depth_coefficient": 0.4, "depthwise_padding": [3]}
    config = transformers.AlignConfig(
        text_config=text,
        vision_config={**image, "drop_connect_rate": 0.0, "image_size": 64},
        projection_dim=32,
    )
    return transformers.AlignModel(config)


def _open_clip() -> torch.nn.Module:
    return open_clip()[0].CLIP(**_OPEN_CLIP)


_OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 10,
    "quick_gelu": True,
    "vision_cfg": {"layers": [1, 2, 1, 1], "width": 4, "head_width": 16, "image_size": 64},
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": VOCABULARY,
        "width": 15,
        "heads": 3,
        "layers": 1,
    },
}


def _resnet(kind: str, growth: int) -> torch.nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4 * growth * 2**stage for stage in range(4)],
        depths=[1, 2, 1, 1],
        layer_type=kind,
        num_labels=5,
    )
    return transformers.ResNetForImageClassification(config)


MAKE = {
    "hf_align": _align,
    "open_clip_rn": _open_clip,
    "hf_resnet": functools.partial(_resnet, "bottleneck", 4),
    "hf_resnet_basic": functools.partial(_resnet, "basic", 1),
}


def build(name: str) -> torch.nn.Module:
    """A case's network in evaluation mode; weights and running statistics are random."""
    torch.manual_seed(0)
    model = MAKE[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer += 0.3 * torch.randn_like(buffer)
            if key.endswith("running_var"):
                buffer *= 1 + torch.rand_like(buffer)
        if name == "hf_align":
            model.temperature.fill_(0.3)
        if name == "open_clip_rn":
            model.logit_scale.fill_(1.2)
    return model


def stages(name: str, model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that stages end with."""
    if name == "hf_align":
        blocks = list(model.vision_model.encoder.blocks)
        ends = [
            i for i, b in enumerate(blocks[1:]) if not b.projection.apply_dropout
        ]  # a stage's first adds nothing to its input
        return [blocks[i] for i in [*ends, len(blocks) - 1]]
    if name == "open_clip_rn":
        return [getattr(model.visual, f"layer{number}") for number in (1, 2, 3, 4)]
    return list(model.resnet.encoder.stages)


def outputs(name: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What the network computes of `picture` and `captions`, and gradients of the loss."""
    images = picture(SIZES[name], BATCH)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    found: dict[str, Any] = {"image_size": np.array(SIZES[name])}
    maps: list[torch.Tensor] = []
    for module in stages(name, model):
        module.register_forward_hook(lambda m, i, output: maps.append(output))
    if name.startswith("hf_resnet"):
        result = model(pixels, labels=torch.arange(BATCH))
        found |= {"logits": result.logits, "loss": result.loss}
    else:
        ids, segments = captions("hf_clip")
        found |= {"ids": ids.astype(np.int32), "segments": segments}
        given = torch.from_numpy(ids), torch.from_numpy(segments)
        found |= (_run_align if name == "hf_align" else _run_open)(model, pixels, *given)
    found["loss"].backward()
    for key, parameter in model.named_parameters():
        if key.removeprefix("resnet.") in _GRADIENTS:
            found[f"gradients/{key}"] = parameter.grad
    for number, one in enumerate(maps):
        found[f"map{number}"] = one.permute(0, 2, 3, 1).flatten(1, 2)
    maps.clear()
    model.train()
    with torch.no_grad():
        tower = getattr(model, "vision_model", getattr(model, "visual", model))
        tower(pixels)
    found["trained_map"] = maps[-1].permute(0, 2, 3, 1).flatten(1, 2)
    return {
        key: value.detach().numpy().astype(np.float32) if torch.is_tensor(value) else value
        for key, value in found.items()
    }


def _run_align(model: Any, pixels: Any, ids: Any, segments: Any) -> dict[str, Any]:
    result = model(pixel_values=pixels, input_ids=ids, attention_mask=segments, return_loss=True)
    return {
        "image_embeddings": result.image_embeds,
        "text_embeddings": result.text_embeds,
        "logits": result.logits_per_image,
        "loss": result.loss,
    }


def _run_open(model: Any, pixels: Any, ids: Any, segments: Any) -> dict[str, Any]:
    del segments  # it looks for the largest id
    image, text, scale = model(pixels, ids)
    logits = scale * image @ text.T
    targets = torch.arange(len(logits))
    loss = [torch.nn.functional.cross_entropy(x, targets) for x in (logits, logits.T)]
    return {
        "image_embeddings": image,
        "text_embeddings": text,
        "logits": logits,
        "loss": sum(loss) / 2,
    }


def save(name: str, model: torch.nn.Module, directory: pathlib.Path) -> None:
    """As the case's project does."""
    if name != "open_clip_rn":
        model.save_pretrained(directory)
        return
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(tensors, directory / "open_clip_model.safetensors")
    content = {"model_cfg": _OPEN_CLIP, "preprocess_cfg": {}}
    (directory / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")


def parameters() -> dict[str, int]:
    """How many parameters published networks have there, without classifiers."""
    counts = {}
    with torch.device("meta"):
        for name, depths, kind, growth in (
            ("resnet18", [2, 2, 2, 2], "basic", 1),
            ("resnet50", [3, 4, 6, 3], "bottleneck", 4),
            ("resnet152", [3, 8, 36, 3], "bottleneck", 4),
        ):
            sizes = [64 * growth * 2**stage for stage in range(4)]
            config = transformers.ResNetConfig(depths=depths, hidden_sizes=sizes, layer_type=kind)
            counts[name] = transformers.ResNetModel(config)
        for name, width, depth in (("efficientnet_b0", 1.0, 1.0), ("efficientnet_b7", 2.0, 3.1)):
            head = {"efficientnet_b0": 1280, "efficientnet_b7": 2560}[name]
            config = transformers.EfficientNetConfig(
                width_coefficient=width, depth_coefficient=depth, hidden_dim=head
            )
            counts[name] = transformers.EfficientNetModel(config)
        counts["align_base"] = transformers.AlignModel(transformers.AlignConfig())
    return {name: sum(p.numel() for p in model.parameters()) for name, model in counts.items()}


def main(names: Sequence[str]) -> None:
    """Writes the named cases anew, or all of them and the counts."""
    if not names:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        (DIRECTORY / "parameters.json").write_text(json.dumps(parameters(), indent=2) + "\n")
    for name in names or MAKE:
        directory = DIRECTORY / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model = build(name)
        save(name, model, directory)
        np.savez_compressed(directory / "expected.npz", **outputs(name, model))
        print(name, sum(file.stat().st_size for file in directory.iterdir()), "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
