"""Characters that transcripts are spelt with: the vocabulary of CTC."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import string
from collections.abc import Iterable, Mapping

import numpy as np

from encoders.data.paths import locate
from encoders.errors import ConfigError, DataError

FILE = "vocab.json"
_BLANKS = ("<pad>", "[PAD]")
_SPACES = ("|", " ")
_SPECIAL = re.compile(r"<[^<>]+>|\[[A-Z]+\]")
# Of wav2vec 2.0's letter models (fairseq's dict.ltr.txt, facebook/wav2vec2-base-960h's vocab.json):
# ordered by how frequent they are in LibriSpeech.
_LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINHSRDLUMWCFGYPBVK'XJQZ")


@dataclasses.dataclass(frozen=True)
class Characters:
    """Tokens of one character each, and special ones such as '<pad>' or '[UNK]'.

    Or phones, of which some have several characters: texts then have a space between any two.

    Attributes:
      tokens: by their ids; '' where an id has none.
    """

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if not any(token in self.tokens for token in _BLANKS):
            raise ConfigError(
                f"preprocessing.characters: expected '<pad>' or '[PAD]', which is CTC's blank, "
                f"among the tokens, got {list(self.tokens[:6])}."
            )

    @classmethod
    def load(cls, given: str) -> Characters:
        """Opens a vocabulary.

        Args:
          given: 'letters' for wav2vec 2.0's 32 tokens, the path of a vocab.json (token -> id) or
            of a directory that has one, or its content.

        Raises:
          DataError: there is no such file, or it is no vocabulary.
          ConfigError: it has no blank.
        """
        if given == "letters":
            return cls(_LETTERS)
        content, name = given, "preprocessing.characters"
        if not given.lstrip().startswith("{"):
            path = locate(given)
            path = path / FILE if path.is_dir() else path
            name = str(path)
            try:
                content = path.read_text(encoding="utf-8")
            except OSError as error:
                raise DataError(
                    f"preprocessing.characters: {path} cannot be read ({error.strerror}); expected "
                    f"'letters', a {FILE}, or a directory with one."
                ) from error
        try:
            ids = json.loads(content)
        except ValueError as error:
            raise DataError(f"{name}: not valid JSON ({error}).") from error
        return cls(_by_id(ids, name))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        """The vocabulary of some texts: the blank, '|' for spaces, and their characters, sorted."""
        found = sorted(set().union(*texts) - set(string.whitespace) - {"|"})
        return cls(("<pad>", "|", *found))

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.tokens)

    @functools.cached_property
    def blank(self) -> int:
        """The id of CTC's blank, which also pads."""
        return next(self.tokens.index(token) for token in _BLANKS if token in self.tokens)

    @functools.cached_property
    def space(self) -> str | None:
        """The token that stands between words, or None: words are then written as one."""
        return next((token for token in _SPACES if token in self.tokens), None)

    @functools.cached_property
    def phones(self) -> bool:
        """Whether tokens stand alone in texts, with spaces around."""
        return any(len(token) > 1 for token in self._ids)

    @functools.cached_property
    def _ids(self) -> Mapping[str, int]:
        return {
            token: number
            for number, token in enumerate(self.tokens)
            if token and not _SPECIAL.fullmatch(token)
        }

    @functools.cached_property
    def _cased(self) -> tuple[bool, bool]:
        letters = "".join(self._ids)
        return letters.upper() != letters, letters.lower() != letters

    def encode(self, text: str, *, strip_punctuation: bool = False) -> np.ndarray:
        """Text -> int32 [U] ids; where all letters have one case, the text is turned into it.

        Phones stay as they are.

        Args:
          text: to spell.
          strip_punctuation: whether ASCII punctuation that has no token is a space.

        Raises:
          ValueError: a character has no token; it names the first few.
        """
        signs = text.split() if self.phones else self._spelt(text, strip_punctuation)
        missing = sorted(set(signs) - set(self._ids))
        if missing:
            shown = ", ".join(f"'{sign}'" for sign in missing[:5])
            raise ValueError(f"its transcript has {shown}, outside the vocabulary")
        return np.array([self._ids[sign] for sign in signs], np.int32)

    def _spelt(self, text: str, strip_punctuation: bool) -> str:
        lower, upper = self._cased
        if lower != upper:
            text = text.lower() if lower else text.upper()
        if strip_punctuation:
            gone = {sign: " " for sign in string.punctuation if sign not in self._ids}
            text = text.translate(str.maketrans(gone))
        return (self.space or "").join(text.split())

    def decode(self, ids: Iterable[int], *, collapse: bool = True) -> str:
        """Ids -> text.

        Args:
          ids: of frames, as CTC predicts them, or of characters.
          collapse: whether repetitions count once, as in frames; False for targets.
        """
        ids = [int(number) for number in ids]
        if collapse:
            ids = [number for number, _ in itertools.groupby(ids)]
        known = set(self._ids.values())
        signs = (self.tokens[number] for number in ids if number in known)
        if self.phones:
            return " ".join(signs)
        return " ".join("".join(" " if sign == self.space else sign for sign in signs).split())

    def to_json(self) -> str:
        """The content of a vocab.json."""
        return json.dumps({token: number for number, token in enumerate(self.tokens) if token})


def _may_be_phones(tokens: Iterable[str]) -> bool:
    """Whether tokens of several characters can stand with spaces between: nothing is one."""
    return not any(token in _SPACES or len(token.split()) > 1 for token in tokens)


def _by_id(ids: object, name: str) -> tuple[str, ...]:
    """{token: id} -> tokens by id.

    Raises:
      DataError: it is no such map.
    """
    right = isinstance(ids, dict) and all(type(number) is int for number in ids.values())
    if not right or len(set(ids.values())) != len(ids) or not ids or min(ids.values()) < 0:
        raise DataError(f"{name}: expected a map of tokens to different ids from 0.")
    if max(ids.values()) > 1 << 20:
        raise DataError(f"{name}: id {max(ids.values())} is no character's.")
    tokens = [""] * (max(ids.values()) + 1)
    for token, number in ids.items():
        tokens[number] = token
    long = [t for t in tokens if len(t) > 1 and not _SPECIAL.fullmatch(t)]
    if long and not _may_be_phones(tokens):
        raise DataError(
            f"{name}: expected tokens of one character, special ones such as '<pad>', or phones "
            f"and no '|' or spaces among them, got '{long[0]}'."
        )
    return tuple(tokens)
