"""Which tokens are hidden, and what stands in their place: pure functions of one row and its key.

Shapes are static: of a row of T tokens, K = round(rate * T) places are returned, and weights say
how many of them are used. That is round(rate * n) of a row's n corruptible tokens, and at least one
(BERT's code). Tokens are chosen singly, by whole words, or by runs of words, in random order: the
last run is cut short where it would exceed the number, and a word that would is passed over, so a
few tokens are wanting where no word fits.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError

Unit = Literal["token", "word", "ngram", "span"]

_SPAN = 0.2 * 0.8 ** np.arange(10)
# unit -> probabilities of runs of 1, 2, ... words.
_LENGTHS: dict[str, tuple[float, ...]] = {
    "word": (1.0,),
    # ALBERT (arXiv 1909.11942, section 4.1): proportional to 1 / n, up to 3.
    "ngram": (6 / 11, 3 / 11, 2 / 11),
    # SpanBERT (arXiv 1907.10529, section 3.1): geometric with p = .2, none beyond 10; mean 3.8.
    "span": tuple(_SPAN / _SPAN.sum()),
}
# After a word that does not fit, others may: BERT's code tries all, and this many turns nearly so.
_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    Attributes:
      rate: share of the corruptible tokens that is chosen and predicted.
      unit: 'token'; 'word', all pieces of a word together; 'ngram', runs of one to three words; or
        'span', runs of words of geometric length, each hidden in one way. Runs do not overlap, nor
        cross a token that may not be corrupted.
      mask: share of the chosen tokens that [MASK] replaces.
      random: share of them that a random token replaces; the rest is kept as it is.
    """

    rate: float = 0.15
    unit: Unit = "token"
    mask: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        check_rate(self.rate, "objective.masking.rate")
        if self.unit != "token" and self.unit not in _LENGTHS:
            raise ConfigError(f"objective.masking.unit: unknown unit '{self.unit}'.")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"objective.masking: mask {self.mask} and random {self.random} are no shares of "
                "one whole."
            )

    def places(self, length: int) -> int:
        """K, how many tokens of a full row of `length` are chosen.

        Raises:
          ConfigError: none is.
        """
        return places_of(self.rate, length, "objective.masking.rate")


def check_rate(rate: float, where: str) -> None:
    """Raises a ConfigError where `rate`, the field `where`, is no share of the tokens."""
    if not 0 < rate <= 1:
        raise ConfigError(f"{where}: expected a share above 0 and up to 1, got {rate}.")


def places_of(rate: float, length: int, where: str) -> int:
    """K, how many tokens of a full row of `length` a rate, the field `where`, chooses.

    Raises:
      ConfigError: none.
    """
    count = round(rate * length)
    if count < 1:
        raise ConfigError(
            f"{where}: {rate} of {length} tokens is none; {1 / length:.4g} or more chooses one."
        )
    return count


class Corrupted(NamedTuple):
    """A corrupted row.

    Attributes:
      ids: [T] int32.
      places: [K] int32, distinct, in the order of the text.
      labels: [K] int32, what stood there.
      weights: [K] float32, 1 for places that are used; elsewhere nothing was changed.
    """

    ids: jax.Array
    places: jax.Array
    labels: jax.Array
    weights: jax.Array


def corrupt(
    key: jax.Array,
    ids: jax.Array,
    corruptible: jax.Array,
    word_start: jax.Array | None,
    masking: Masking,
    vocabulary: Vocabulary,
) -> Corrupted:
    """Hides tokens of one row.

    Args:
      key: of this row.
      ids: [T] int32.
      corruptible: [T] bool.
      word_start: [T] bool, True where a word begins; None will do for unit 'token'.
      masking: how.
      vocabulary: special ids.
    """
    # One draw for all: how long runs are, in which order they go, what replaces them, and by what.
    bits = jax.random.bits(key, (4, *ids.shape), jnp.uint32)
    lengths, order, way = (bits[:3] >> 8).astype(jnp.float32) / 2**24  # uniform in [0, 1)
    words, runs = _groups(lengths, corruptible, word_start, masking.unit)
    index, count = jnp.arange(ids.shape[0]), masking.places(ids.shape[0])
    wanted = jnp.round(masking.rate * corruptible.sum()).astype(jnp.int32)
    chosen = _choose(order, words, runs, corruptible, jnp.clip(wanted, 1, count))
    # In the order of the text; those not chosen come last and have no weight.
    rank, places = jax.lax.top_k(jnp.where(chosen, ids.shape[0] - index, 0), count)
    used, labels = rank > 0, ids[places]
    way = way[runs if masking.unit == "span" else index][places]
    drawn = ordinary_ids(bits[3][places], vocabulary)
    kept = jnp.where(way < masking.mask + masking.random, drawn, labels)
    new = jnp.where(way < masking.mask, vocabulary.mask_id, kept)
    new = jnp.where(used, new, labels)
    return Corrupted(ids.at[places].set(new), places, labels, used.astype(jnp.float32))


def ordinary_ids(bits: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """int32 ids, uniform over all that are not special, from uniform uint32 bits [...]."""
    special = np.asarray(vocabulary.special_ids, np.int32)
    drawn = (bits % np.uint32(vocabulary.size - len(special))).astype(jnp.int32)
    # The k-th ordinary id is k plus the number of special ids before it; the i-th special id
    # (sorted) has special[i] - i ordinary ones before it.
    before = special - np.arange(len(special), dtype=np.int32)
    return drawn + (drawn[..., None] >= before).sum(-1, dtype=jnp.int32)


def _groups(
    noise: jax.Array, corruptible: jax.Array, word_start: jax.Array | None, unit: Unit
) -> tuple[jax.Array, jax.Array]:
    """The numbers of each token's word and run, [T] int32 in [0, T), from uniform noise [T]."""
    (length,) = corruptible.shape
    index = jnp.arange(length, dtype=jnp.int32)
    if unit == "token":
        return index, index
    if word_start is None:
        raise ConfigError(
            f"objective.masking.unit: '{unit}' needs batches with word_start; this data has none."
        )
    after_gap = ~jnp.pad(corruptible[:-1], (1, 0))
    begins = (word_start | after_gap) & corruptible
    words = jnp.cumsum(begins) - 1
    # The text is cut into runs of random length, one after the other. A word begins a run where the
    # last one ends, or where the text was interrupted.
    shares = _LENGTHS[unit]
    lengths = 1 + (noise[:, None] >= np.cumsum(shares, dtype=np.float32)[:-1]).sum(-1)
    ends = jnp.zeros(length, bool).at[jnp.cumsum(lengths)].set(True, mode="drop").at[0].set(True)
    runs = jnp.cumsum(begins & (ends[words] | after_gap)) - 1
    return jnp.maximum(words, 0).astype(jnp.int32), jnp.maximum(runs, 0).astype(jnp.int32)


def _choose(
    noise: jax.Array, words: jax.Array, runs: jax.Array, corruptible: jax.Array, left: jax.Array
) -> jax.Array:
    """[T] bool: whole words, run by run in the order of noise [T], of `left` tokens at most."""
    sizes = jnp.zeros_like(words).at[words].add(corruptible.astype(jnp.int32))
    # Of each word the noise of its run; the sort is stable, so the words of a run stay in order.
    noise = noise[runs]
    order = jnp.argsort(jnp.ones_like(noise).at[words].min(noise))
    sizes = sizes[order]
    taken = jnp.zeros(words.shape, bool)
    for _ in range(_TURNS):
        fits = ~taken & (sizes > 0) & (sizes <= left)
        more = fits & (jnp.cumsum(jnp.where(fits, sizes, 0)) <= left)
        taken, left = taken | more, left - jnp.where(more, sizes, 0).sum()
    return jnp.zeros(words.shape, bool).at[order].set(taken)[words] & corruptible
