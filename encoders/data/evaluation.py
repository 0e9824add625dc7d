"""One ordered pass over a source, in batches of one size."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from encoders.data.batcher import Batch, check_fields, make_example
from encoders.data.pipeline import available_cores
from encoders.data.sources import CorruptExample, Source
from encoders.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def eval_batches(
    source: Source,
    transforms: Sequence[Callable],
    batch_size: int,
    *,
    rows: np.ndarray | None = None,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Yields every example once, in the source's order.

    Args:
      source: random access to examples.
      transforms: callables (example, rng) -> example without randomness, such as
        `Preprocessing.eval_transforms()`.
      batch_size: rows of the global batch; every process gets as many batches.
      rows: sorted positions in the global batch of this process's rows, as `local_rows` gives them
        for a mesh; None means all.
      threads: worker threads; None takes one per core.

    Yields:
      field -> [rows, ...], 'row' (int32 number in the source) and 'valid' (bool).
      Rows that pad the last batch, and corrupt examples, repeat another example and are not valid.

    Raises:
      DataError: the first examples are all corrupt.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: must be at least 1, got {batch_size}.")
    local = range(batch_size) if rows is None else rows.tolist()

    def make(index: int) -> Batch | None:
        if index >= len(source):
            return None
        rng = np.random.Generator(np.random.Philox(key=[0, index]))
        return usable(index, lambda: make_example(source, index, transforms, rng))

    def usable(index: int, get: Callable[[], Batch]) -> Batch | None:
        try:
            return get()
        except CorruptExample as error:
            logger.warning("corrupt example %s: %s; left out", source.describe(index), error)
            return None

    filler: Batch = {}

    def collate(numbers: list[int], futures: list) -> Batch:
        made = [future.result() for future in futures]
        if not filler:
            candidates = itertools.chain(made, map(make, range(min(100, len(source)))))
            filler.update(next((fields for fields in candidates if fields is not None), {}))
        if not filler:
            raise DataError(
                f"data source: none of the first examples is usable, from {source.describe(0)} on."
            )
        spec = {name: (value.shape, value.dtype) for name, value in filler.items()}
        for place, (index, fields) in enumerate(zip(numbers, made, strict=True)):
            if fields is not None:
                made[place] = usable(
                    index, functools.partial(check_fields, fields, spec, source, index)
                )
        examples = [filler if fields is None else fields for fields in made]
        batch = {name: np.stack([example[name] for example in examples]) for name in spec}
        batch["row"] = np.array(numbers, np.int32)
        batch["valid"] = np.array([fields is not None for fields in made])
        return batch

    pool = concurrent.futures.ThreadPoolExecutor(threads or available_cores())
    pending: collections.deque = collections.deque()
    try:
        for first in range(0, len(source), batch_size):
            numbers = [first + row for row in local]
            pending.append((numbers, [pool.submit(make, index) for index in numbers]))
            if len(pending) > 2:
                yield collate(*pending.popleft())
        while pending:
            yield collate(*pending.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
