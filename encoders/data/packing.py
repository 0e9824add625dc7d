"""Cutting documents into chunks, and packing chunks into rows of one length.

All of it follows from the lengths and a fixed key, so that the rows are the same in every process
and every run: a batch stays a function of (seed, step).
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from encoders.data.permutation import permute

_KEY = 0x9AC4  # which of the chunks of one length share a row; fixed


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Parts of documents.

    Attributes:
      document: [N] int64, which document a chunk is of.
      start: [N] int64, the token of the document at which it begins.
      length: [N] int64, its number of tokens.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def take(self, order: np.ndarray) -> Chunks:
        """Some of the chunks, in an order."""
        return Chunks(self.document[order], self.start[order], self.length[order])


def cut(lengths: np.ndarray, room: int) -> Chunks:
    """Cuts documents of so many tokens [D] into chunks of `room` tokens and what is left."""
    lengths = np.asarray(lengths, np.int64)
    counts = -(-lengths // room)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * room
    return Chunks(document, start, np.minimum(room, lengths[document] - start))


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs items into rows: the largest first, each into the fullest row that has room for it.

    Best-fit decreasing, for all items of one size at a time: it takes time for the different sizes,
    hardly for the items (Krell et al., arXiv 2107.02027, section 3.1, pack by such a histogram).
    Which items of one size share a row with which others is a fixed pseudo-random choice, or
    documents that lie beside each other would.

    Args:
      sizes: [N] integers in [1, capacity].
      capacity: of a row.

    Returns:
      order [N] of the items, row by row, and ends [R] of the rows in that order.
    """
    sizes = np.asarray(sizes, np.int64)
    keys = permute(np.arange(len(sizes)), len(sizes), _KEY)
    order = np.lexsort((keys, -sizes))
    row_of = np.empty(len(sizes), np.int64)
    # Free places -> the rows that have so many; emptied lists are left out of `free`.
    open_rows: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    rows = 0
    values, starts = np.unique(-sizes[order], return_index=True)
    ends = np.append(starts[1:], len(sizes))
    for size, start, end in zip((-values).tolist(), starts.tolist(), ends.tolist(), strict=True):
        items = order[start:end]
        for free in sorted(place for place in open_rows if place >= size):
            if not len(items):
                break
            waiting = np.concatenate(open_rows.pop(free))
            items, unused = _place(items, size, waiting, free, row_of, open_rows)
            if len(unused):
                open_rows[free].append(unused)
        if len(items):
            needed = -(-len(items) // (capacity // size))
            new = np.arange(rows, rows + needed)
            rows += needed
            _place(items, size, new, capacity, row_of, open_rows)
    packed = order[np.argsort(row_of[order], kind="stable")]
    return packed, np.cumsum(np.bincount(row_of, minlength=rows))


def _place(
    items: np.ndarray,
    size: int,
    rows: np.ndarray,
    free: int,
    row_of: np.ndarray,
    open_rows: dict[int, list[np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Fills rows that have `free` places with items of one size, as many as go into each.

    Returns:
      The items for which there was no row, and the rows for which there was no item.
    """
    each = free // size
    full = min(len(rows), len(items) // each)
    row_of[items[: full * each]] = np.repeat(rows[:full], each)
    left = free - each * size
    if full and left:
        open_rows[left].append(rows[:full])
    items, rows = items[full * each :], rows[full:]
    if len(items) and len(rows):  # fewer than fill one more row
        row_of[items] = rows[0]
        open_rows[free - len(items) * size].append(rows[:1])
        items, rows = items[:0], rows[1:]
    return items, rows
