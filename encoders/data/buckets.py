"""Batches of few shapes for texts of many lengths: little padding, few compilations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_SHORTEST = 16


def length_batches(
    lengths: Sequence[int], batch_size: int, longest: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Sorts texts by length and cuts them into batches, the longest first.

    Args:
      lengths: tokens of each text, none more than `longest`.
      batch_size: rows of a batch.
      longest: the greatest T there may be.

    Yields:
      The numbers of the texts of a batch; T, a power of two from 16 on or `longest`, to pad them
      to; and rows to pad the batch to, `batch_size` but for the last, a power of two.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        length = max(_SHORTEST, int(lengths[numbers[0]]))
        rows = min(batch_size, _power_of_two(len(numbers)))
        yield numbers, min(longest, _power_of_two(length)), rows


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
