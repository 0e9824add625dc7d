"""Beam search of CTC with an n-gram language model, by flashlight-text and KenLM (optional)."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from encoders.data.characters import Characters
from encoders.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
    """A search over words of a language model.

    Attributes:
      language_model: an ARPA file, whose unigrams are the words that may be found.
      width: hypotheses that are kept.
      weight: of the language model's log probabilities, base 10, against those of frames.
      word_score: added for every word.
      threshold: how far below the best a hypothesis may be.
    """

    language_model: str
    width: int = 100
    weight: float = 2.0
    word_score: float = -1.0
    threshold: float = 50.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"beam.width: expected a number from 1, got {self.width}.")


class BeamSearch:
    """Decodes clips, one after the other, on the host.

    Args:
      beam: what to search with.
      characters: the vocabulary of the frames.
      where: names the section in errors.

    Raises:
      ConfigError: the libraries are not installed, or the vocabulary does not separate words.
      DataError: the language model cannot be read, or has no word that can be spelt.
    """

    def __init__(self, beam: Beam, characters: Characters, where: str = "beam"):
        try:
            from flashlight.lib.text import decoder
            from flashlight.lib.text.decoder.kenlm import KenLM
            from flashlight.lib.text.dictionary import Dictionary, create_word_dict
        except ImportError as error:
            raise ConfigError(
                f"{where}: needs flashlight-text and kenlm, which are not installed ({error}); "
                "pip install 'encoders[beam]', or leave it out for greedy decoding."
            ) from error
        if characters.space is None:
            raise ConfigError(f"{where}: needs a vocabulary with '|' or ' ' between words.")
        path = pathlib.Path(beam.language_model).expanduser()
        words = list(_words(path, where))
        space = characters.tokens.index(characters.space)
        lexicon = {word: ids for word in words if (ids := _spell(word, characters)) is not None}
        if not lexicon:
            raise DataError(f"{where}: the vocabulary can spell none of the words of {path}.")
        numbers: Dictionary = create_word_dict({**{word: [] for word in lexicon}, "<unk>": []})
        try:
            model = KenLM(str(path), numbers)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{where}: {path} is no language model ({error}).") from error
        trie, start = decoder.Trie(characters.size, space), model.start(False)
        for word, ids in lexicon.items():
            number = numbers.get_index(word)
            _, score = model.score(start, number)
            trie.insert([*ids, space], number, score)
        trie.smear(decoder.SmearingMode.MAX)
        options = decoder.LexiconDecoderOptions(
            beam.width, characters.size, beam.threshold, beam.weight, beam.word_score,
            -np.inf, 0.0, False, decoder.CriterionType.CTC,
        )  # fmt: skip
        unknown = numbers.get_index("<unk>")
        make = functools.partial(decoder.LexiconDecoder, options, trie, model, space)
        self._decoder = make(characters.blank, unknown, [], False)
        self._words = numbers
        self._alive: tuple[Any, ...] = (trie, model)  # which the decoder points to

    def __call__(self, logits: np.ndarray) -> str:
        """The best text for the logits [T, V] of the real frames of a clip."""
        scores = logits.astype(np.float32)
        scores = scores - scores.max(-1, keepdims=True)
        scores = np.ascontiguousarray(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))
        found = self._decoder.decode(scores.ctypes.data, *scores.shape)
        if not found:
            return ""
        return " ".join(self._words.get_entry(word) for word in found[0].words if word >= 0)


def _words(path: pathlib.Path, where: str) -> Iterator[str]:
    """The unigrams of an ARPA file but for '<s>', '</s>' and '<unk>'."""
    try:
        with path.open(encoding="utf-8") as file:
            inside = False
            for line in file:
                line = line.strip()
                if line.startswith("\\"):
                    if inside:
                        return
                    inside = line == "\\1-grams:"
                elif inside and line:
                    word = line.split()[1]
                    if not word.startswith("<"):
                        yield word
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{where}: {path} cannot be read as an ARPA file ({error}).") from error


def _spell(word: str, characters: Characters) -> list[int] | None:
    try:
        return characters.encode(word).tolist()
    except ValueError:
        return None
