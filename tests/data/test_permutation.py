import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.data.permutation import permute
from encoders.data.sources.base import epoch_order


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10_000))
def test_bijection_of_any_size(size, seed, epoch):
    image = permute(np.arange(size), size, seed, epoch)
    assert sorted(image.tolist()) == list(range(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2**33, 2**50), seed=st.integers(0, 2**32), start=st.integers(0, 2**32))
def test_huge_sizes_need_no_memory(size, seed, start):
    indices = np.arange(start, start + 64)
    image = permute(indices, size, seed, 0)
    assert len(set(image.tolist())) == 64
    assert image.min() >= 0
    assert image.max() < size


@pytest.mark.parametrize("size", [10, 1000, 12345])
def test_another_order_for_each_epoch_and_seed(size):
    orders = [
        permute(np.arange(size), size, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_one_at_a_time_agrees_with_all_at_once():
    together = permute(np.arange(77), 77, 5)
    assert together.tolist() == [int(permute(np.array(i), 77, 5)) for i in range(77)]


def test_order_is_pinned():
    # An order that moved would silently change every run that resumes.
    assert permute(np.arange(10), 10, 0, 0).tolist() == [2, 5, 9, 4, 8, 6, 1, 7, 0, 3]


def test_looks_uniform():
    size, keys = 16, 4000
    image = np.stack([permute(np.arange(size), size, key) for key in range(keys)])
    for place in (0, 7, 15):
        counts = np.bincount(image[:, place], minlength=size)
        chi_square = ((counts - keys / size) ** 2 / (keys / size)).sum()
        assert chi_square < 44.3  # the 0.9999 quantile for 15 degrees of freedom
    # No trace of the neighbourhood: the successor of 0 is as uniform as 0 itself.
    gaps = np.bincount((image[:, 1] - image[:, 0]) % size, minlength=size)[1:]
    expected = keys / (size - 1)
    assert ((gaps - expected) ** 2 / expected).sum() < 42.6  # 14 degrees


def test_the_epoch_advances_by_itself():
    # The pitfall of samplers with a set_epoch that nobody calls.
    first, second = epoch_order(np.arange(200), 100, seed=3, shuffle=True).reshape(2, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first.tolist() != second.tolist()


def test_a_batch_may_straddle_epochs():
    order = epoch_order(np.arange(90, 130), 100, seed=3, shuffle=True)
    assert order[:10].tolist() == epoch_order(np.arange(90, 100), 100, 3, True).tolist()
    assert order[10:].tolist() == epoch_order(np.arange(100, 130), 100, 3, True).tolist()


def test_unshuffled_order_repeats():
    assert epoch_order(np.arange(8), 3, seed=0, shuffle=False).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
