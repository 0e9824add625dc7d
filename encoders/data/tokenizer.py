"""Tokenizers of the `tokenizers` library: from text to ids, and which ids are special."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import tokenizers

from encoders.data.tokenizer_files import read_tokenizer
from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError, DataError

# What families call their special tokens, in the order of Vocabulary's fields. XLNet has <s> and
# </s> too, but begins and ends texts with <cls> and <sep>. CLIP's tokenizer has only a beginning
# and an end, SigLIP's no beginning; what such lack, no objective of theirs needs. RoBERTa's has
# GPT-2's <|endoftext|> besides </s>, and Gemma's has <s> and </s> as words.
_END = ("<eos>", "</s>", "<|endoftext|>")
NAMES = {
    "pad_id": ("[PAD]", "<pad>", *_END),
    "unk_id": ("[UNK]", "<unk>", *_END),
    "cls_id": ("[CLS]", "<cls>", "<bos>", "<s>", "<|startoftext|>", *_END),
    "sep_id": ("[SEP]", "<sep>", *_END),
    "mask_id": ("[MASK]", "<mask>", "<unk>", *_END),
}

# Tokenizers are told apart by their ids of this, besides their tokens: case, accents, white space,
# numbers and rare characters are where the rules for equal tokens differ.
_PROBE = "The naïve CAFÉ isn't\topen at 10:45,\n\n  but 東京's (x_1+y)*2 = ½ <b>π</b> & 𝔘𝔫𝔦! "


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What stands around the texts of an example.

    Attributes:
      ids: special ids before the first text, after it, and after the second of a pair.
      types: their token types.
      text_types: token type of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.ids))


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and its special ids.

    Attributes:
      inner: the library's object; it pickles.
      vocabulary: size and special ids.
    """

    inner: tokenizers.Tokenizer
    vocabulary: Vocabulary

    @classmethod
    def load(cls, source: str, expected: Vocabulary | None = None) -> Tokenizer:
        """Opens a tokenizer.json, its content, or a directory that has one or what it was made of.

        Args:
          source: a path, 'sample:NAME', or JSON text; see `tokenizer_files.read_tokenizer`.
          expected: the special ids that a config says it has, or None. It may pad with another
            special token than the one that is called so, as SigLIP does.

        Raises:
          DataError: there is no such file, or it is no tokenizer.
          ConfigError: it has other special ids than expected, or another size.
        """
        tokenizer = cls.wrap(read_tokenizer(source))
        found = tokenizer.vocabulary
        if expected is not None and expected.pad_id in found.special_ids:
            found = dataclasses.replace(found, pad_id=expected.pad_id)
            tokenizer = cls(tokenizer.inner, found)
        # A config need not list the special ids that have no name.
        if expected not in (None, found, dataclasses.replace(found, others=())):
            raise ConfigError(
                f"preprocessing.vocabulary: the config says {expected}, the tokenizer has {found}."
            )
        return tokenizer

    @classmethod
    def wrap(cls, inner: tokenizers.Tokenizer) -> Tokenizer:
        """The library's object with its special ids; it no longer cuts or pads.

        Raises:
          DataError: it lacks a special token that encoders need.
        """
        inner.no_padding()
        inner.no_truncation()
        return cls(inner, _vocabulary_of(inner))

    def ids(self, text: str) -> np.ndarray:
        """int32 ids of a text, without special tokens around it."""
        return np.asarray(self.inner.encode(text, add_special_tokens=False).ids, np.int32)

    def batch_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`ids` of many texts, by all cores."""
        found = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(one.ids, np.int32) for one in found]

    def assemble(
        self, parts: Sequence[np.ndarray], max_length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One or two texts with the special tokens around them, cut to a length.

        Of a pair the longer text is cut, then both evenly, as transformers' 'longest_first' does.

        Args:
          parts: ids of one or two texts.
          max_length: the most tokens, special ones included.

        Returns:
          ids and token types [n] int32, and word_start [n] bool.

        Raises:
          ConfigError: there is no room for any token.
        """
        frame = self._frames[len(parts) - 1]
        room = max_length - frame.size
        if room < len(parts):
            raise ConfigError(
                f"preprocessing.max_length: {max_length} leaves no room between {frame.size} "
                f"special tokens."
            )
        lengths = _cut([len(part) for part in parts], room)
        ids, types, words = [list(frame.ids[0])], [list(frame.types[0])], []
        words.append(np.ones(len(frame.ids[0]), bool))
        for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            after = frame.ids[number + 1]
            ids += [part[:length], after]
            types += [[frame.text_types[number]] * length, frame.types[number + 1]]
            words += [self.word_starts(part[:length]), np.ones(len(after), bool)]
        return (
            np.concatenate([np.asarray(one, np.int32) for one in ids]),
            np.concatenate([np.asarray(one, np.int32) for one in types]),
            np.concatenate(words),
        )

    def fields(
        self, parts: Sequence[np.ndarray], length: int, *, token_types: bool
    ) -> dict[str, np.ndarray]:
        """What `assemble` makes of one or two texts, padded to the length it cuts them to.

        Returns:
          'ids' and 'segments' [length] int32, 'word_start' [length] bool, and if asked for
          'token_types' [length] int32.

        Raises:
          ConfigError: there is no room for any token.
        """
        ids, types, words = self.assemble(parts, length)
        fields = {
            "ids": padded(ids, length, self.vocabulary.pad_id),
            "segments": padded(np.ones_like(ids), length),
            "word_start": padded(words, length),
        }
        if token_types:
            fields["token_types"] = padded(types, length)
        return fields

    def frame_size(self, texts: int) -> int:
        """How many special tokens stand around one text or a pair."""
        return self._frames[texts - 1].size

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """[n] ids of the text from its beginning -> [n] bool, True where a word begins."""
        if self._word_end is not None:
            return np.append(True, self._word_end[ids[:-1]])[: len(ids)]
        starts = self.word_start[ids]
        starts[:1] = True
        return starts

    @functools.cached_property
    def _word_end(self) -> np.ndarray | None:
        """[size] bool, True for ids that end a word, where these are marked and not beginnings."""
        suffix = json.loads(self.to_json())["model"].get("end_of_word_suffix")
        if not suffix:
            return None
        ends = np.zeros(self.vocabulary.size, bool)
        tokens = self.inner.get_vocab(with_added_tokens=True)
        ends[[number for token, number in tokens.items() if token.endswith(suffix)]] = True
        ends[list(self.vocabulary.special_ids)] = True
        return ends

    @functools.cached_property
    def word_start(self) -> np.ndarray:
        """[size] bool, True for ids that begin a word; special ids are words of their own.

        WordPiece marks what continues a word ("##"), byte-level BPE ("Ġ") and Unigram ("▁") what
        follows white space. The first token of a text begins a word whatever its mark.

        Raises:
          DataError: the tokenizer does neither.
        """
        model = json.loads(self.to_json())["model"]
        tokens = self.inner.get_vocab(with_added_tokens=True)
        prefix = model.get("continuing_subword_prefix")
        if model["type"] == "WordLevel":
            begins = dict.fromkeys(tokens, True)
        elif prefix:
            begins = {token: not token.startswith(prefix) for token in tokens}
        else:
            marks = ("Ġ", "Ċ", "ĉ", "▁")
            begins = {token: token.startswith(marks) for token in tokens}
            if not any(begins.values()):
                raise DataError(
                    "preprocessing.tokenizer: it marks neither beginnings nor continuations of "
                    "words, so whole words cannot be masked."
                )
        table = np.ones(self.vocabulary.size, bool)
        table[list(tokens.values())] = [begins[token] for token in tokens]
        table[list(self.vocabulary.special_ids)] = True
        return table

    @functools.cached_property
    def _frames(self) -> tuple[_Frame, _Frame]:
        """The frames of one text and of a pair, read off what the tokenizer does to a token."""
        special = self.vocabulary
        if self.inner.post_processor is None:
            cls, sep = (special.cls_id,), (special.sep_id,)
            return (
                _Frame((cls, sep), ((0,), (0,)), (0,)),
                _Frame((cls, sep, sep), ((0,), (0,), (1,)), (0, 1)),
            )
        probe = self.inner.encode(self.inner.id_to_token(special.mask_id), add_special_tokens=False)
        probe.truncate(1)
        return (
            _frame_of(self.inner.post_process(probe)),
            _frame_of(self.inner.post_process(probe, probe)),
        )

    def literal(self) -> Tokenizer:
        """A copy that takes special tokens spelt in a text, such as <s>, for text."""
        inner = tokenizers.Tokenizer.from_str(self.to_json())
        inner.encode_special_tokens = True
        return Tokenizer(inner, self.vocabulary)

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self.inner.to_str()

    @functools.cached_property
    def hash(self) -> str:
        """Hexadecimal digest that tokenizers share which give equal ids.

        Of the tokens and the ids of a text that tells rules apart, not of the file, which
        versions of the library write differently.
        """
        tokens = sorted(self.inner.get_vocab(with_added_tokens=True).items(), key=lambda kv: kv[1])
        content = json.dumps([tokens, self.ids(_PROBE).tolist()], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def padded(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """[n] -> [length], filled up at the end."""
    out = np.full(length, fill, values.dtype)
    out[: len(values)] = values
    return out


def _cut(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths of one or two texts that fit: the longer is cut first, then both alike."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    short = min(lengths)
    if 2 * short > room:
        # The odd token goes to the second text, or to the first if that was longer.
        low, high = room // 2, room - room // 2
        return [high, low] if lengths[0] > lengths[1] else [low, high]
    return [room - short if length > short else length for length in lengths]


def _frame_of(encoding: tokenizers.Encoding) -> _Frame:
    """Reads the frame off an example whose texts are one token each."""
    ids: list[list[int]] = [[]]
    types: list[list[int]] = [[]]
    text_types = []
    for token, kind, special in zip(
        encoding.ids, encoding.type_ids, encoding.special_tokens_mask, strict=True
    ):
        if special:
            ids[-1].append(token)
            types[-1].append(kind)
        else:
            ids.append([])
            types.append([])
            text_types.append(kind)
    return _Frame(tuple(map(tuple, ids)), tuple(map(tuple, types)), tuple(text_types))


def _vocabulary_of(inner: tokenizers.Tokenizer) -> Vocabulary:
    ids = {}
    for field, names in NAMES.items():
        found = [i for i in map(inner.token_to_id, names) if i is not None]
        if not found:
            raise DataError(
                f"preprocessing.tokenizer: it has no token for {field}, none of {names}."
            )
        ids[field] = found[0]
    others = [i for i, token in inner.get_added_tokens_decoder().items() if token.special]
    others = tuple(sorted(set(others) - set(ids.values())))
    # Ids may have gaps, where tokens were removed.
    size = max(inner.get_vocab(with_added_tokens=True).values()) + 1
    return Vocabulary(size=size, **ids, others=others)
