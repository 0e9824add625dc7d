import threading
import time

import jax
import numpy as np
import pytest

from encoders.data.prefetch import prefetch


def test_order_and_end():
    with prefetch(iter(range(20)), lambda x: x * 2, depth=3) as batches:
        assert list(batches) == [2 * i for i in range(20)]
        assert list(batches) == []


def test_the_device_gets_the_batch():
    with prefetch([{"x": np.arange(4)}], jax.device_put) as batches:
        batch = next(batches)
    assert isinstance(batch["x"], jax.Array)


def test_runs_ahead_by_depth_and_no_further():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    with prefetch(source(), lambda x: x, depth=3) as batches:
        assert next(batches) == 0
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert made == [0, 1, 2, 3]


def test_exceptions_arrive_after_the_batches_before_them():
    def source():
        yield 1
        yield 2
        raise OSError("disk gone")

    batches = prefetch(source(), lambda x: x)
    assert next(batches) == 1
    assert next(batches) == 2
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)

    def to_device(batch):
        raise MemoryError("no room on the device")

    batches = prefetch(iter([1, 2]), to_device)
    with pytest.raises(MemoryError, match="no room"):
        next(batches)
    assert list(batches) == []


def test_waiting_is_measured():
    def slow():
        for number in range(3):
            time.sleep(0.1)
            yield number

    with prefetch(slow(), lambda x: x) as batches:
        list(batches)
        assert 0.2 < batches.waited < 10
    with prefetch(iter(range(4)), lambda x: x, depth=4) as batches:
        time.sleep(0.5)
        for _ in range(4):
            next(batches)
        assert batches.waited < 0.2


def test_closing_ends_the_thread_and_the_source():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    before = threading.active_count()
    batches = prefetch(endless(), lambda x: x, depth=2)
    next(batches)
    batches.close()
    batches.close()
    assert closed == [True]
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)
