"""Opening tokenizers: tokenizer.json, or the older files that Hugging Face directories hold."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from encoders.data.paths import locate
from encoders.errors import DataError

_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_PIECES = ("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")


def read_tokenizer(source: str) -> tokenizers.Tokenizer:
    """Opens a tokenizer.

    Args:
      source: the content of a tokenizer.json; the path of one; 'sample:NAME'; or a directory with
        tokenizer.json, else vocab.txt (BERT's WordPiece), else vocab.json and merges.txt
        (byte-level BPE, or CLIP's where tokens end in </w>), the former two with the settings of
        tokenizer_config.json if there is one.

    Raises:
      DataError: nothing of this is there, or it cannot be read.
    """
    if source.lstrip().startswith("{"):
        return _parse(source)
    path = locate(source)
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise DataError(f"preprocessing.tokenizer: no file or directory '{source}'.")
    if path.name in ("vocab.txt", "vocab.json", *_PIECES):
        return _read_directory(path.parent)
    return _parse(_text(path))


def _read_directory(directory: pathlib.Path) -> tokenizers.Tokenizer:
    if (directory / "tokenizer.json").is_file():
        return _parse(_text(directory / "tokenizer.json"))
    settings = _settings(directory)
    if (directory / "vocab.txt").is_file():
        return _word_piece(directory / "vocab.txt", settings)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _byte_level(directory, settings)
    for name in _PIECES:
        if (directory / name).is_file():
            raise DataError(
                f"preprocessing.tokenizer: '{directory}' has only {name}; write a tokenizer.json "
                f"beside it with transformers: AutoTokenizer.from_pretrained(DIR)"
                f".save_pretrained(DIR)."
            )
    raise DataError(
        f"preprocessing.tokenizer: '{directory}' has no tokenizer.json, no vocab.txt, and no "
        f"vocab.json with merges.txt."
    )


def _parse(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"preprocessing.tokenizer: no tokenizer ({error}).") from error


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"preprocessing.tokenizer: cannot read '{path}' ({error}).") from error


def _settings(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise DataError(
            f"preprocessing.tokenizer: '{path}' is not valid JSON ({error})."
        ) from error


def _word_piece(path: pathlib.Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    # An id is the number of a line; BERT's own files hold each token once.
    vocabulary = {token: i for i, token in enumerate(_text(path).rstrip("\n").split("\n"))}
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer.add_special_tokens([name for name in names if name in vocabulary])
    if {"[CLS]", "[SEP]"} <= vocabulary.keys():
        tokenizer.post_processor = bert_frame(tokenizer)
    return tokenizer


def _byte_level(directory: pathlib.Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        files = str(directory / "vocab.json"), str(directory / "merges.txt")
        vocabulary, merges = models.BPE.read_file(*files)
        suffixed = any(token.endswith("</w>") for token in vocabulary)
        given = {"end_of_word_suffix": "</w>", "unk_token": _CLIP_END} if suffixed else {}
        model = models.BPE(vocabulary, merges, fuse_unk=False, **given)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"preprocessing.tokenizer: no tokenizer ({error}).") from error
    tokenizer = tokenizers.Tokenizer(model)
    if suffixed:
        return _clip(tokenizer)
    spaced = settings.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<s>", "<pad>", "</s>", "<unk>")
    tokenizer.add_special_tokens([n for n in names if tokenizer.token_to_id(n) is not None])
    if tokenizer.token_to_id("<mask>") is not None:
        # The mask swallows the space before it, as "a <mask>" has one word after a.
        tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    if None not in map(tokenizer.token_to_id, ("<s>", "</s>")):
        tokenizer.post_processor = roberta_frame(tokenizer, add_prefix_space=spaced)
    return tokenizer


def _clip(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """CLIP's rules (arXiv 2103.00020, section 2.4): lower case, words, and two special tokens."""
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    special = "|".join(re.escape(token) for token in (_CLIP_START, _CLIP_END))
    words = rf"{special}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
    split = pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_CLIP_START, _CLIP_END])
    start, end = [(name, tokenizer.token_to_id(name)) for name in (_CLIP_START, _CLIP_END)]
    tokenizer.post_processor = processors.RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def bert_frame(tokenizer: tokenizers.Tokenizer) -> processors.PostProcessor:
    """[CLS] text [SEP], or [CLS] text [SEP] other [SEP] with token type 1 from the other on."""
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )


def roberta_frame(
    tokenizer: tokenizers.Tokenizer, *, add_prefix_space: bool
) -> processors.PostProcessor:
    """<s> text </s>, or <s> text </s></s> other </s>, all of token type 0."""
    sep, cls = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    return processors.RobertaProcessing(sep, cls, add_prefix_space=add_prefix_space)
