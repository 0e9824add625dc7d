"""Writes tests/golden/pairs: tiny CLIPs and SigLIPs of transformers and open_clip.

    python -m tools.golden.write_pairs [CASE ...]

Needs the extra 'parity'. Only the named cases are written, or all of them. Every case is a
directory that its project saved, and expected.npz: token ids, outputs and hidden states of both
towers, embeddings, logits, the loss that the model was published with, and some of its gradients
under their names; from PyTorch on the CPU in float32. tokenized.json is what its tokenizer makes of
texts, parameters.json counts the parameters of published sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import importlib.util
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers

from tools.golden.inputs import picture

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "pairs"
BATCH, LENGTH, VOCABULARY = 4, 10, 64
# Rows and columns of the patches of images at their own aspect ratio, and the length of a row.
SHAPES, PATCHES = ((4, 4), (2, 7), (3, 3), (1, 20)), 20
TEXTS = ["A photo of a cat", "the DOG, on a   mat!", "", "cats and dogs and cats and dogs and cats"]

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 15,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": LENGTH,
}
_IMAGE = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
_SQUARE = {"image_size": 32, "patch_size": 8}
# Of what gradients are stored: the rest of a block follows from its parts.
_GRADIENTS = re.compile(
    r"logit_.*|.*projection.*|.*\bproj|.*embeddings?\b.*|.*probe|.*pre_layrnorm.*|.*ln_pre.*|"
    r".*(layers|resblocks|blocks)\.1\.(self_attn\.k_proj|mlp\.fc1|attn\.in_proj_.*|mlp\.c_fc).*|"
    r".*head\..*|.*attn_pool.*|.*conv1.*"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
      make: builds it.
      image_size: (height, width) it is fed with.
      loss: 'softmax' or 'sigmoid'.
      save: writes it into a directory.
    """

    make: Callable[[], torch.nn.Module]
    image_size: tuple[int, int]
    loss: str
    save: Callable[[torch.nn.Module, pathlib.Path], None]


# --- transformers ---------------------------------------------------------------------------------


def _hf(kind: str, text: dict, image: dict, **fields: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        config = getattr(transformers, f"{kind}Config")(
            text_config={**_TEXT, **text}, vision_config={**_IMAGE, **image}, **fields
        )
        return getattr(transformers, f"{kind}Model")(config)

    return make


def _save_hf(processor: dict[str, Any], tokenizer: Callable[[], Any]) -> Callable:
    def save(model: torch.nn.Module, directory: pathlib.Path) -> None:
        model.save_pretrained(directory)
        config = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **processor}
        text = json.dumps(config, indent=2, sort_keys=True)
        (directory / "preprocessor_config.json").write_text(text + "\n")
        tokenizer().save_pretrained(directory)

    return save


def _clip_tokenizer() -> Any:
    """Letters, alone and at the end of a word, a few merges, and the two special tokens."""
    letters = "abcdefghijklmnoprstu"
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens = [*tokens, "!</w>", ",</w>", "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=LENGTH,
    )


def _siglip_tokenizer() -> Any:
    """Unigrams as SigLIP's: </s> ends a text and pads it, and <pad> is a token that is not used."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in ("a", "the", "cat", "cats", "dog", "and", "of", "on")]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz,!"]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        model_max_length=LENGTH,
        model_input_names=["input_ids"],
    )


def _save_siglip(model: torch.nn.Module, directory: pathlib.Path) -> None:
    _save_hf(_SIGLIP_PROCESSOR, _siglip_tokenizer)(model, directory)
    # The published class reads sentencepiece files, which are left out here.
    path = directory / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "tokenizer_class": "SiglipTokenizer"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _siglip2_tokenizer() -> Any:
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g")]
    tokens = [*special, "▁", *"abcdefghijklmnopqrstuvwxyz,!", *(a + b for a, b in merges)]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=LENGTH,
        padding_side="right",
    )
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


_CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_NAFLEX_PROCESSOR = {
    "image_processor_type": "Siglip2ImageProcessor",
    "do_resize": True,
    "resample": 2,
    "patch_size": 8,
    "max_num_patches": 20,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_CLIP_END = {"eos_token_id": 49, "bos_token_id": 48}
_SIGLIP_TEXT = {"projection_size": 12}

CASES = {
    "hf_clip": Case(
        _hf("CLIP", _CLIP_END, _SQUARE, projection_dim=10),
        (32, 32),
        "softmax",
        _save_hf(_CLIP_PROCESSOR, _clip_tokenizer),
    ),
    # GELU, another eps, and the end of text found as configs of the first weights say it.
    "hf_clip_gelu": Case(
        _hf(
            "CLIP",
            {"hidden_act": "gelu", "eos_token_id": 2, "layer_norm_eps": 1e-3},
            {**_SQUARE, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
            projection_dim=10,
        ),
        (32, 32),
        "softmax",
        _save_hf(_CLIP_PROCESSOR, _clip_tokenizer),
    ),
    "hf_siglip": Case(_hf("Siglip", _SIGLIP_TEXT, _SQUARE), (32, 32), "sigmoid", _save_siglip),
    # Images of many shapes, on grids smaller and larger than the square of 16 patches.
    "hf_siglip2_naflex": Case(
        _hf("Siglip2", _SIGLIP_TEXT, {"patch_size": 8, "num_patches": 16}),
        (PATCHES, 64),
        "sigmoid",
        _save_hf(_NAFLEX_PROCESSOR, _siglip2_tokenizer),
    ),
    "hf_siglip2": Case(
        _hf("Siglip", _SIGLIP_TEXT, {**_SQUARE, "image_size": 44}),  # half a patch is cut off
        (44, 44),
        "sigmoid",
        _save_hf({**_SIGLIP_PROCESSOR, "size": {"height": 44, "width": 44}}, _siglip2_tokenizer),
    ),
}


# --- open_clip ------------------------------------------------------------------------------------

_OPEN_TEXT = {
    "context_length": LENGTH,
    "vocab_size": VOCABULARY,
    "width": 15,
    "heads": 3,
    "layers": 2,
    "mlp_ratio": 1.4,
}
_OPEN_IMAGE = {
    "image_size": [28, 42],
    "patch_size": 14,
    "width": 12,
    "head_width": 4,
    "layers": 2,
    "mlp_ratio": 1.7,
}
_OPEN_PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """For torchvision where it is not installed: both packages import it, neither needs it here."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] == "torchvision":
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        module.__getattr__ = lambda attribute: mock.MagicMock(name=attribute)


def open_clip() -> tuple[Any, Any]:
    """The package, and timm."""
    sys.meta_path.append(_StandIn())  # asked last
    import open_clip
    import timm

    return open_clip, timm


def _open(tokenizer: Callable[[], Any] | None = None, **config: Any) -> Case:
    image = config["vision_cfg"]

    def make() -> torch.nn.Module:
        kind = "CustomTextCLIP" if config.get("custom_text") else "CLIP"
        fields = {key: value for key, value in config.items() if key != "custom_text"}
        # Tiny, under a name that says the number of heads.
        package, timm = open_clip()
        size = {"embed_dim": 24, "depth": 2, "mlp_ratio": 1.5, "img_size": image["image_size"]}
        tiny = functools.partial(timm.create_model, **size)
        with mock.patch.object(timm, "create_model", tiny):
            return getattr(package, kind)(**fields)

    def save(model: torch.nn.Module, directory: pathlib.Path) -> None:
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(tensors, directory / "open_clip_model.safetensors")
        content = {"model_cfg": config, "preprocess_cfg": _OPEN_PREPROCESS}
        (directory / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer().save_pretrained(directory)

    size = tuple(image["image_size"])
    return Case(make, size, "sigmoid" if "init_logit_bias" in config else "softmax", save)


CASES |= {
    "open_clip": _open(_clip_tokenizer, embed_dim=10, vision_cfg=_OPEN_IMAGE, text_cfg=_OPEN_TEXT),
    "open_clip_quick": _open(
        embed_dim=10,
        quick_gelu=True,
        custom_text=True,
        vision_cfg={**_OPEN_IMAGE, "ls_init_value": 0.5},
        text_cfg=_OPEN_TEXT,
    ),
    # CLIPA's: nothing before the blocks, the mean of the patches, and a text that is read whole.
    "open_clip_mean": _open(
        embed_dim=10,
        vision_cfg={
            **_OPEN_IMAGE,
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
        },
        text_cfg={**_OPEN_TEXT, "pool_type": "last", "no_causal_mask": True},
    ),
    "open_clip_siglip": _open(
        _siglip_tokenizer,
        embed_dim=24,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg={
            "image_size": [32, 48],
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        text_cfg={
            **_OPEN_TEXT,
            "width": 24,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    ),
}


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
        tokenizer = _siglip_tokenizer()
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
