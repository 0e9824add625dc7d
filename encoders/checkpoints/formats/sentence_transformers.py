"""sentence-transformers directories: an encoder of Hugging Face, and how it makes vectors of texts.

modules.json lists what a text passes: Transformer, Pooling, and maybe Normalize. What they say goes
to the metadata's 'embedding', which `TextEncoder.embed` reads. Left out on import: how similar two
vectors are called (`similarity_fn_name`), which is no part of the vectors.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, normalizers

from encoders.checkpoints.formats import files, hf
from encoders.checkpoints.formats.hf_tokenizer import with_tokenizer
from encoders.checkpoints.formats.mapping import Exported, Imported
from encoders.errors import CheckpointError, nearest

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER = ("sentence_bert_config.json", "sentence_roberta_config.json")
_PLAIN = ("Normalize", "Dropout")  # modules without weights; Dropout does nothing here

# Ours -> theirs.
POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
}
# Fields of older files -> theirs, in the order in which the vectors stand side by side.
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read(path: pathlib.Path) -> Imported:
    """Reads a directory with modules.json; a cross-encoder, which does not pool, as any other.

    Raises:
      CheckpointError: as `hf.read`; or a module or an option is not supported.
    """
    modules = _modules(path)
    kinds = [kind for kind, _ in modules]
    if not modules or kinds[0] != "Transformer":
        raise CheckpointError(f"{path / MODULES}: expected a Transformer first, got {kinds}.")
    for kind in kinds[1:]:
        if kind not in ("Pooling", *_PLAIN):
            raise CheckpointError(
                f"{path / MODULES}: the module {kind} is not supported, only Transformer, Pooling, "
                f"{' and '.join(_PLAIN)}."
            )
    inside = modules[0][1]
    imported = _limited(hf.read(inside), inside)
    if "Pooling" not in kinds:
        return imported
    prompt = _prompt(path)
    pooling = _pooling(dict(modules[1:])["Pooling"], prompt)
    embedding = {"pooling": pooling, "normalize": "Normalize" in kinds, "prompt": prompt}
    metadata = {**imported.metadata, "format": "sentence-transformers", "embedding": embedding}
    return dataclasses.replace(imported, metadata=metadata)


def _modules(path: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """(kind, directory) of every module, in order."""
    try:
        found = json.loads((path / MODULES).read_text(encoding="utf-8"))
        return [(entry["type"].split(".")[-1], path / entry.get("path", "")) for entry in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MODULES}: is no list of modules ({error!r}).") from error


def _limited(imported: Imported, inside: pathlib.Path) -> Imported:
    """With the length and case that the Transformer module asks for."""
    names = [name for name in _TRANSFORMER if (inside / name).is_file()]
    settings = files.read_json(inside / names[0]) if names else {}
    if settings.get("max_seq_length"):
        imported = with_tokenizer(imported, inside, settings["max_seq_length"])
    section = imported.preprocessing
    if settings.get("do_lower_case") and section is not None:
        inner = Tokenizer.from_str(section["tokenizer"])
        before = [] if inner.normalizer is None else [inner.normalizer]
        inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
        imported = dataclasses.replace(
            imported, preprocessing={**section, "tokenizer": inner.to_str()}
        )
    return imported


def _prompt(path: pathlib.Path) -> str:
    """The text that goes before every other one, unless a caller says otherwise."""
    if not (path / SETTINGS).is_file():
        return ""
    settings = files.read_json(path / SETTINGS)
    name = settings.get("default_prompt_name")
    return (settings.get("prompts") or {}).get(name, "") if name else ""


def _pooling(directory: pathlib.Path, prompt: str) -> list[str]:
    config = files.read_json(directory / files.CONFIG)
    modes = config.get("pooling_mode") or [new for old, new in _LEGACY.items() if config.get(old)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    ours = {theirs: name for name, theirs in POOLINGS.items()}
    for mode in modes:
        if mode not in ours:
            raise CheckpointError(
                f"{directory / files.CONFIG}: pooling_mode '{mode}' is not supported."
                f"{nearest(mode, ours)}"
            )
    if prompt and not config.get("include_prompt", True):
        raise CheckpointError(
            f"{directory / files.CONFIG}: include_prompt=False is not supported; the prompt's own "
            "tokens are pooled like all others."
        )
    return [ours[mode] for mode in modes]


def write(directory: pathlib.Path, exported: Exported, embedding: Mapping[str, Any]) -> None:
    """Writes an encoder as `hf.write` does, and beside it how it makes vectors.

    Args:
      directory: to write into.
      exported: the encoder; its preprocessing has the tokenizer.
      embedding: 'pooling', 'normalize' and 'prompt', as `read` gives them.

    Raises:
      CheckpointError: as `hf.write`; there is no tokenizer, or another pooling than those here.
    """
    if exported.preprocessing is None:
        raise CheckpointError("format 'sentence-transformers': needs a tokenizer with the weights.")
    wrong = [name for name in embedding["pooling"] if name not in POOLINGS]
    if wrong:
        raise CheckpointError(
            f"format 'sentence-transformers': pooling '{wrong[0]}' cannot be expressed."
            f"{nearest(wrong[0], POOLINGS)}"
        )
    hf.write(directory, exported)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if embedding["normalize"] else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(zip(kinds, paths, strict=True))
    ]
    for place in paths:
        (directory / place).mkdir(exist_ok=True)
    text = json.dumps(modules, indent=2) + "\n"
    (directory / MODULES).write_text(text, encoding="utf-8")
    length = exported.preprocessing["max_length"]
    files.write_json(
        directory / _TRANSFORMER[0], {"max_seq_length": length, "do_lower_case": False}
    )
    modes = [POOLINGS[name] for name in embedding["pooling"]]
    pooling = {old: new in modes for old, new in _LEGACY.items()}
    if modes != [new for new in _LEGACY.values() if new in modes]:
        pooling = {"pooling_mode": modes}  # an order that only newer versions can be told
    files.write_json(
        directory / paths[1] / files.CONFIG,
        {"word_embedding_dimension": exported.fields["width"], **pooling},
    )
    prompt = embedding.get("prompt") or ""
    settings = {"prompts": {"default": prompt}, "default_prompt_name": "default"} if prompt else {}
    files.write_json(directory / SETTINGS, settings)
