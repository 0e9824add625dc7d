"""Stores small tokenizers and the ids that transformers makes with them: tests/golden/tokenizers.

    python -m tools.golden.write_tokenizers

Needs transformers; the tests that read the result do not. The tokenizers are trained on the
project's own licence and README.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import transformers

from encoders.data.tokenizer_training import train_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
DIRECTORY = ROOT / "tests" / "golden" / "tokenizers"

TEXTS = (
    "An encoder is trained by one loop.",
    "The naïve CAFÉ isn't\topen at 10:45,\n\n  but 東京's (x_1+y)*2 = ½ <b>π</b> & 𝔘𝔫𝔦! ",
    "  white   space \u200b and\u00a0more… “quotes” — dashes",
    "x" * 120,
    "A [MASK] word and a <mask> word, [SEP] </s>",
    "",
    "unbelievably UNBELIEVABLY Ünbeliëvably 12345.678e-9",
)
MAX_LENGTH = 24


def main() -> None:
    """Writes every case anew."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    corpus = [(ROOT / name).read_text(encoding="utf-8") for name in ("LICENSE", "README.md")]
    corpus = [line for text in corpus for line in text.splitlines()] + list(TEXTS)
    word_piece = train_tokenizer(corpus, "wordpiece", 700)
    byte_level = train_tokenizer(corpus, "bpe", 600)
    for case in ("bert_uncased", "bert_cased"):
        tokens = word_piece.inner.get_vocab()
        directory = make(
            case, do_lower_case=case == "bert_uncased", tokenizer_class="BertTokenizer"
        )
        text = "\n".join(sorted(tokens, key=tokens.get)) + "\n"
        (directory / "vocab.txt").write_text(text, encoding="utf-8")
        expect(directory, transformers.BertTokenizer.from_pretrained(directory))
    directory = make("roberta", tokenizer_class="RobertaTokenizer")
    model = json.loads(byte_level.to_json())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    # The mask swallows the space before it, as in the tokenizer.json that RoBERTa comes with.
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    expect(directory, transformers.RobertaTokenizer.from_pretrained(directory, mask_token=mask))
    directory = make("unigram", tokenizer_class="PreTrainedTokenizerFast")
    unigram = train_tokenizer(corpus, "unigram", 400)
    (directory / "tokenizer.json").write_text(unigram.to_json(), encoding="utf-8")
    expect(directory, transformers.PreTrainedTokenizerFast.from_pretrained(directory))


def make(case: str, **settings: Any) -> pathlib.Path:
    """The directory of a case, with its tokenizer_config.json."""
    directory = DIRECTORY / case
    directory.mkdir(parents=True)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def expect(directory: pathlib.Path, tokenizer: Any) -> None:
    """Writes what a tokenizer makes of every text, and of every text with the next."""
    inputs = [(text,) for text in TEXTS]
    # transformers takes an empty second text for none.
    others = (*TEXTS[1:], TEXTS[0])
    inputs += [pair for pair in zip(TEXTS, others, strict=True) if pair[1]]
    expected = []
    for texts in inputs:
        found = {"texts": texts}
        for name, length in (("whole", 512), ("cut", MAX_LENGTH)):
            made = tokenizer(
                *texts, truncation="longest_first", max_length=length, return_token_type_ids=True
            )
            found[name] = [made["input_ids"], made["token_type_ids"]]
        expected.append(found)
    content = {"max_length": MAX_LENGTH, "inputs": expected}
    (directory / "expected.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
