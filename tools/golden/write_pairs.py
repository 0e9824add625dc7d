"""Writes tests/golden/pairs: tiny CLIPs and SigLIPs of transformers and open_clip.

    python -m tools.golden.write_pairs [CASE ...]

Needs the extra 'parity'. Only the named cases are written, or all of them. Every case is a
directory that its project saved, and expected.npz: token ids, outputs and hidden states of both
towers, embeddings, logits, the loss that the model was published with, and some of its gradients
under their names; from PyTorch on the CPU in float32. tokenized.json is what its tokenizer makes of
texts, parameters.json counts the parameters of published sizes.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from tools.golden.inputs import picture
from tools.golden.pair_models import BATCH, CASES, LENGTH, PATCHES, SHAPES, siglip_tokenizer

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "pairs"
TEXTS = ["A photo of a cat", "the DOG, on a   mat!", "", "cats and dogs and cats and dogs and cats"]
# Of what gradients are stored: the rest of a block follows from its parts.
_GRADIENTS = re.compile(
    r"logit_.*|.*projection.*|.*\bproj|.*embeddings?\b.*|.*probe|.*pre_layrnorm.*|.*ln_pre.*|"
    r".*(layers|resblocks|blocks)\.1\.(self_attn\.k_proj|mlp\.fc1|attn\.in_proj_.*|mlp\.c_fc).*|"
    r".*head\..*|.*attn_pool.*|.*conv1.*"
)

# --- what they compute ----------------------------------------------------------------------------


def build(name: str) -> torch.nn.Module:
    """A case's network in evaluation mode, all weights random: initial zeros and ones hide bugs."""
    torch.manual_seed(0)
    model = CASES[name].make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.logit_scale.fill_(1.2)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.fill_(-1.5)
    return model


def captions(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, T], and segments [B, T]: 1 for what is read, 0 for padding."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, 48, (BATCH, LENGTH))
    segments = np.ones((BATCH, LENGTH), np.int32)
    if "siglip" in name or name == "open_clip_mean":  # padding is read
        ids[1, 4:] = 1
        return ids, segments
    ids[:, 0] = 48
    for row, length in enumerate((LENGTH, 5, 2, 8)):
        ids[row, length - 1 :] = 49 if row % 2 else 0
        ids[row, length - 1] = 49  # the end of a text
        segments[row, length:] = 0
    return ids, segments


def outputs(name: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What the network computes of `picture` and `captions`, and gradients of the loss."""
    case = CASES[name]
    images = picture(case.image_size, BATCH)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    ids, segments = captions(name)
    run = _run_hf if name.startswith("hf_") else _run_open
    found = run(model, pixels, torch.from_numpy(ids), torch.from_numpy(segments))
    found["loss"] = _loss(found["logits"], case.loss)
    found["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        if _GRADIENTS.fullmatch(parameter_name) and parameter.grad is not None:
            found[f"gradients/{parameter_name}"] = parameter.grad
    result = {key: value.detach().numpy().astype(np.float32) for key, value in found.items()}
    given = {"image_size": np.array(case.image_size), "ids": ids.astype(np.int32)}
    if "naflex" in name:  # the picture's pixels are those of the patches, one after another
        given["shapes"] = np.array(SHAPES, np.int32)
    return {**given, "segments": segments, **result}


def _loss(logits: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "softmax":
        targets = torch.arange(len(logits))
        rows = torch.nn.functional.cross_entropy(logits, targets)
        return (rows + torch.nn.functional.cross_entropy(logits.T, targets)) / 2
    signs = 2 * torch.eye(len(logits)) - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(logits)


def _run_hf(model: torch.nn.Module, pixels: Any, ids: Any, segments: Any) -> dict[str, Any]:
    given = {} if segments.all() else {"attention_mask": segments}
    if isinstance(model, transformers.Siglip2Model):
        shapes = torch.tensor(SHAPES)
        given["spatial_shapes"] = shapes
        given["pixel_attention_mask"] = (
            torch.arange(PATCHES) < shapes.prod(1, keepdim=True)
        ).long()
        pixels = pixels.permute(0, 2, 3, 1).reshape(BATCH, PATCHES, -1)
    result = model(
        pixel_values=pixels, input_ids=ids, return_loss=True, output_hidden_states=True, **given
    )
    image, text = result.vision_model_output, result.text_model_output
    found = {
        "image_hidden": torch.stack(image.hidden_states[1:]),
        "image_tokens": image.last_hidden_state,
        "text_hidden": torch.stack(text.hidden_states[1:]),
        "text_tokens": text.last_hidden_state,
        "image_embeddings": result.image_embeds,
        "text_embeddings": result.text_embeds,
        "logits": result.logits_per_image,
    }
    sigmoid = getattr(model, "logit_bias", None) is not None
    ours = _loss(result.logits_per_image, "sigmoid" if sigmoid else "softmax")
    torch.testing.assert_close(result.loss, ours)
    return found


def _run_open(model: torch.nn.Module, pixels: Any, ids: Any, segments: Any) -> dict[str, Any]:
    hidden: dict[str, list] = {"image": [], "text": []}
    text = getattr(model, "text", model)
    trunk = getattr(model.visual, "trunk", None)
    towers = {
        "image": model.visual.transformer.resblocks if trunk is None else trunk.blocks,
        "text": text.transformer.resblocks,
    }
    for tower, blocks in towers.items():
        for block in blocks:
            block.register_forward_hook(lambda m, i, output, t=tower: hidden[t].append(output))
    image, text, scale, *bias = model(pixels, ids)
    logits = scale * image @ text.T + (bias[0] if bias else 0.0)
    return {
        "image_hidden": torch.stack(hidden["image"]),
        "text_hidden": torch.stack(hidden["text"]),
        "image_embeddings": image,
        "text_embeddings": text,
        "logits": logits,
    }


def tokenized(directory: pathlib.Path) -> dict[str, Any]:
    """What transformers makes of `TEXTS` with the tokenizer of a directory."""
    if directory.name in ("hf_siglip", "open_clip_siglip"):  # their classes clean texts first
        tokenizer = siglip_tokenizer()
        texts = [" ".join(re.sub(r"[^\w\s]", "", text.lower()).split()) for text in TEXTS]
    else:
        tokenizer, texts = transformers.AutoTokenizer.from_pretrained(directory), TEXTS
    made = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH)
    return {"texts": TEXTS, "ids": made["input_ids"], "mask": made.get("attention_mask")}


# --- published sizes ------------------------------------------------------------------------------

_B_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_L_IMAGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
# name -> (class, fields of its published config.json)
PUBLISHED = {
    "clip_b32": ("CLIP", {}),
    "clip_b16": ("CLIP", {"vision_config": {"patch_size": 16}}),
    "clip_l14": (
        "CLIP",
        {
            "projection_dim": 768,
            "text_config": _B_TEXT,
            "vision_config": {**_L_IMAGE, "patch_size": 14},
        },
    ),
    "siglip_b16_224": ("Siglip", {}),
    "siglip_l16_256": (
        "Siglip",
        {"text_config": _L_IMAGE, "vision_config": {**_L_IMAGE, "image_size": 256}},
    ),
    "siglip_so400m14_384": (
        "Siglip",
        {
            "text_config": _SO400M,
            "vision_config": {**_SO400M, "patch_size": 14, "image_size": 384},
        },
    ),
    "siglip2_b16_224": ("Siglip", {"text_config": {"vocab_size": 256000}}),
}


def parameters() -> dict[str, int]:
    """How many parameters each published size has in transformers."""
    counts = {}
    for name, (kind, fields) in PUBLISHED.items():
        config = getattr(transformers, f"{kind}Config")(**fields)
        with torch.device("meta"):
            model = getattr(transformers, f"{kind}Model")(config)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    return counts


def main(names: Sequence[str]) -> None:
    """Writes the named cases anew, or all of them and the counts."""
    if not names:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        DIRECTORY.mkdir(parents=True)
        (DIRECTORY / "parameters.json").write_text(json.dumps(parameters(), indent=2) + "\n")
    for name in names or CASES:
        directory = DIRECTORY / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        model = build(name)
        CASES[name].save(model, directory)
        np.savez_compressed(directory / "expected.npz", **outputs(name, model))
        if (directory / "tokenizer.json").is_file():
            text = json.dumps(tokenized(directory), indent=1) + "\n"
            (directory / "tokenized.json").write_text(text)
        print(name, sum(file.stat().st_size for file in directory.iterdir()), "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
