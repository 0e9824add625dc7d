"""Tiny CLIPs and SigLIPs of transformers and open_clip with random weights; needs both of them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import safetensors.torch
import tokenizers
import torch
import transformers

BATCH, LENGTH, VOCABULARY = 4, 10, 64
# Rows and columns of the patches of images at their own aspect ratio, and the length of a row.
SHAPES, PATCHES = ((4, 4), (2, 7), (3, 3), (1, 20)), 20

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


def siglip_tokenizer() -> Any:
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
    _save_hf(_SIGLIP_PROCESSOR, siglip_tokenizer)(model, directory)
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
        siglip_tokenizer,
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
