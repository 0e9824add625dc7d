"""Makes batches and puts them on the device while it computes on earlier ones."""

from __future__ import annotations

import collections
import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class prefetch(Iterator):
    """Iterates over `to_device(batch)` for batches of an iterator, ahead, in a background thread.

    An exception of the iterator or of `to_device` is raised to the consumer, after the batches
    before it, and ends the iteration. Close it, or use it as a context manager, to stop early: that
    also closes the iterator.

    Args:
      batches: host batches; may be infinite.
      to_device: starts the transfer of one batch, such as a `jax.device_put` to a sharding.
      depth: batches that are made, or being made, beyond the one in use; at least 1.

    Attributes:
      waited: seconds the consumer has waited for batches so far.
    """

    def __init__(self, batches: Iterable[Any], to_device: Callable[[Any], Any], depth: int = 2):
        self.waited = 0.0
        self._iterator, self._to_device = iter(batches), to_device
        # One thread: the batches are made one after the other, in order.
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending = collections.deque(
            self._pool.submit(self._make) for _ in range(max(1, depth))
        )

    def __next__(self) -> Any:
        if not self._pending:
            raise StopIteration
        began = time.perf_counter()
        delivered = False
        try:
            # The end of the iterator arrives here as what it is, a StopIteration.
            batch = self._pending[0].result()
            delivered = True
        finally:
            self.waited += time.perf_counter() - began
            if not delivered:
                self.close()
        self._pending.popleft()
        self._pending.append(self._pool.submit(self._make))
        return batch

    def close(self) -> None:
        """Stops the thread and the iterator behind it; safe to call twice."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> prefetch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make(self) -> Any:
        return self._to_device(next(self._iterator))
