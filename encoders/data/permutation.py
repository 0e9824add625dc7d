"""A shuffle that needs no memory: a keyed bijection of [0, n), evaluated one index at a time.

A Feistel network permutes the smallest power of two that holds n; indices that land outside [0, n)
are sent through again until they land inside (cycle walking: Black & Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002). The power of two is below 2n, so fewer than two passes are
needed on average.
"""

from __future__ import annotations

import functools

import numpy as np

_ROUNDS = 8
_MIX1, _MIX2 = (
    np.uint64(0xFF51AFD7ED558CCD),
    np.uint64(0xC4CEB9FE1A85EC53),
)  # MurmurHash3's finaliser
_SHIFT = np.uint64(33)


def permute(indices: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Maps [...] indices in [0, size) through the permutation that `key` picks.

    Args:
      indices: [...] integers in [0, size).
      size: the number n of items.
      *key: non-negative integers, such as (seed, epoch); every key is another permutation.

    Returns:
      [...] int64, distinct for distinct indices.
    """
    indices = np.asarray(indices)
    values = indices.astype(np.uint64).ravel()
    if size <= 1:
        return np.zeros(indices.shape, np.int64)
    keys = _round_keys(key)
    bits = (size - 1).bit_length()
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _feistel(values[outside], bits, keys)
        outside = values >= np.uint64(size)
    return values.astype(np.int64).reshape(indices.shape)


@functools.lru_cache(maxsize=1024)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    # The stream of SeedSequence is fixed by numpy's compatibility policy, so an order never
    # changes.
    return np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    # Unbalanced halves permute exactly 2**bits values; an even split would need up to four times n.
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    ones = np.uint64(1)
    left, right = values >> low, values & ((ones << low) - ones)
    for number, key in enumerate(keys):
        if number % 2:
            right = right ^ (_hash(left, key) & ((ones << low) - ones))
        else:
            left = left ^ (_hash(right, key) & ((ones << high) - ones))
    return (left << low) | right


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    values = values ^ key  # uint64 arrays wrap around silently, as wanted
    values = (values ^ (values >> _SHIFT)) * _MIX1
    values = (values ^ (values >> _SHIFT)) * _MIX2
    return values ^ (values >> _SHIFT)
