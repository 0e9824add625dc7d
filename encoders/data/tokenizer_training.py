"""Training tokenizers on raw text."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterable
from typing import Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from encoders.data.tokenizer import Tokenizer
from encoders.data.tokenizer_files import bert_frame, roberta_frame
from encoders.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Kind = Literal["wordpiece", "bpe", "unigram"]

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_ALPHABET = 1000  # letters that a WordPiece vocabulary has of its own, the most frequent
_WORD_LENGTH = 100  # BERT's; longer words are unknown


def train_tokenizer(
    texts: Iterable[str], kind: Kind, vocab_size: int, *, lowercase: bool = False
) -> Tokenizer:
    """Trains a tokenizer. A few GB of text are enough; all distinct words are held in memory.

    The same texts give the same tokenizer, except for 'unigram', whose sums the library takes in
    an order that changes.

    Args:
      texts: the texts; gone through twice.
      kind: 'wordpiece' (BERT, ELECTRA), byte-level 'bpe' (RoBERTa, ModernBERT), or 'unigram'
        (ALBERT, XLNet, DeBERTa-v3), with BERT's special tokens or, for 'bpe', RoBERTa's.
      vocab_size: number of ids, special ones included; less where the texts give no more.
      lowercase: whether case is dropped, and accents with it for 'wordpiece'.

    Raises:
      ConfigError: the size leaves no room for characters.
      DataError: the library cannot train on these texts.
    """
    if vocab_size < 2 * len(_BERT) or (kind == "bpe" and vocab_size < 256 + len(_ROBERTA)):
        raise ConfigError(
            f"--vocab-size: {vocab_size} leaves no room for the characters of '{kind}'."
        )
    if iter(texts) is texts:
        texts = list(texts)
    make = {"wordpiece": _word_piece, "bpe": _byte_level, "unigram": _unigram}[kind]
    inner, trainer = make(vocab_size, lowercase, texts)
    try:
        inner.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"the tokenizer cannot be trained on these texts ({error}).") from error
    if kind == "wordpiece":
        inner = _without_special_letters(inner)
    if kind == "bpe":
        inner.post_processor = roberta_frame(inner, add_prefix_space=False)
    else:
        inner.post_processor = bert_frame(inner)
    found = inner.get_vocab_size()
    if found < vocab_size:
        logger.warning("the texts give %d tokens, not the %d asked for", found, vocab_size)
    return Tokenizer.wrap(inner)


_Made = tuple[tokenizers.Tokenizer, trainers.Trainer]


def _word_piece(size: int, lowercase: bool, texts: Iterable[str]) -> _Made:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    # The library numbers letters inside words in an order that changes from run to run, and with it
    # which of two equally frequent merges comes first. Given as special tokens they have an order.
    counts: collections.Counter = collections.Counter()
    for text in texts:
        counts.update(inner.normalizer.normalize_str(text))
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))
    letters = sorted(letter for letter in frequent[:_ALPHABET] if not letter.isspace())
    letters = letters[: (size - len(_BERT)) // 2]
    split = inner.pre_tokenizer.pre_tokenize_str
    inside = ["##" + letter for letter in letters if len(split("a" + letter)) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*_BERT, *inside],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    return inner, trainer


def _without_special_letters(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, in which only BERT's special tokens are special."""
    model = models.WordPiece(
        inner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=_WORD_LENGTH
    )
    plain = tokenizers.Tokenizer(model)
    plain.normalizer, plain.pre_tokenizer = inner.normalizer, inner.pre_tokenizer
    plain.decoder = inner.decoder
    plain.add_special_tokens(list(_BERT))
    return plain


def _byte_level(size: int, lowercase: bool, texts: Iterable[str]) -> _Made:
    del texts
    inner = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[
            tokenizers.AddedToken(name, lstrip=name == "<mask>", special=True) for name in _ROBERTA
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    return inner, trainer


def _unigram(size: int, lowercase: bool, texts: Iterable[str]) -> _Made:
    del texts
    inner = tokenizers.Tokenizer(models.Unigram())
    steps = [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " ")]
    steps += [normalizers.Lowercase()] if lowercase else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(_BERT), unk_token="[UNK]", show_progress=False
    )
    return inner, trainer
