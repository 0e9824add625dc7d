"""Checkpoints of a run: saved in the background, whole or not at all, and checked when read.

Layout of one checkpoint, DIRECTORY/<step>/:

    arrays/          every array of the state, by path (orbax; sharded arrays are written in pieces)
    metadata.json    what travels with the weights: config, preprocessing, step, ...
    manifest.json    shape and dtype of every array, metrics, size and CRC-32 of every file

The manifest is written last, by an atomic rename: a directory with one is a finished checkpoint,
one without is what an interrupted save left. Deleting removes the manifest first. So a checkpoint
is there or not, whenever the process dies.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from encoders import rules
from encoders.checkpoints import manifest as manifests
from encoders.errors import CheckpointError, StorageError
from encoders.parallel import processes

_METADATA, _ARRAYS = "metadata.json", "arrays"
_SAVE_SECONDS = 3600.0  # how long one process waits for another to save

# How the layers below say that the disk, and not the program, is at fault.
_STORAGE_SIGNS = (
    "No space left",
    "File too large",
    "quota",
    "Read-only file system",
    "Permission denied",
    "PERMISSION_DENIED",
    "Input/output error",
    "RESOURCE_EXHAUSTED",
)


class CheckpointStore:
    """The checkpoints in one directory.

    Opening one reads nothing and changes nothing, so any number of readers may look at the
    directory of a live run; what an interrupted save left is removed by the next run's first save.
    In a multi-process run every process has a store on the same directory, and makes the same
    calls to save, wait, restore and close.

    Args:
      directory: where the checkpoints are, or will be.
      keep_last: how many of the newest are kept, at least 1.
      keep_every: steps that are a multiple of this are kept for good.
      best_metric: the checkpoint that is best by this metric is kept too.
      best_mode: whether more or less of it is better.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_last: int = 1,
        keep_every: int | None = None,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ):
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {keep_last}.")
        self.directory = pathlib.Path(directory).absolute()
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._best_metric = best_metric
        self._best_sign = 1.0 if best_mode == "max" else -1.0
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        self._saved = -1  # the last step given to `save`

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- what is there --------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        found = (p for p in self.directory.iterdir() if p.name.isdigit())
        return sorted(int(p.name) for p in found if (p / manifests.MANIFEST).exists())

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Step of the checkpoint that is best by `best_metric`, or None if none has it.

        The oldest of equals: a save between two evaluations repeats the last one's metrics.
        """
        scored = []
        for step in self.steps():
            manifest = manifests.read(self._path(step)) or {"metrics": {}}
            value = manifest["metrics"].get(self._best_metric)
            if value is not None and math.isfinite(value):
                scored.append((self._best_sign * value, -step))
        return -max(scored)[1] if scored else None

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """What `save` was given as metadata.

        Raises:
          CheckpointError: no such checkpoint, or it is damaged.
        """
        step = self._choose(step)
        damaged = manifests.damaged_files(self._path(step), self._manifest(step), [_METADATA])
        if damaged:
            raise self._damaged(step, _METADATA)
        return json.loads((self._path(step) / _METADATA).read_text(encoding="utf-8"))

    # --- saving ---------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        state: Any,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Copies the state to host memory, then writes it in the background.

        When this returns, the state's buffers may be donated or changed. A save still going on is
        waited for first. A step that is there already is left alone: a run's state is a function of
        its config and the step.

        Args:
          step: number of the checkpoint.
          state: a tree of jax or numpy arrays.
          metadata: JSON-serialisable.
          metrics: name -> number, for `best_metric`.
          wait: returns only when the checkpoint is finished.

        Raises:
          StorageError: this save, or the one before it, could not be written; older ones are whole.
        """
        self.wait()
        if step == self._saved or step in self.steps():
            return
        text = json.dumps(metadata, indent=2, sort_keys=True)
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        leaves = [x if isinstance(x, jax.Array) else np.array(x) for x in jax.tree.leaves(state)]
        flat = dict(zip(rules.leaf_paths(state), leaves, strict=True))
        arrays = {path: [list(x.shape), str(x.dtype)] for path, x in flat.items()}

        def prepare() -> None:
            if jax.process_index() == 0:
                with self._storage_errors(step):
                    self._prepare(step, sum(x.nbytes for x in leaves))

        processes.together(f"checkpoint {step} prepared", prepare, _SAVE_SECONDS)
        with self._storage_errors(step):
            self._orbax.save(
                self._path(step) / _ARRAYS, args=ocp.args.PyTreeSave(rules.unflatten(flat))
            )
        self._saved = step
        self._pending = self._background.submit(self._finish, step, text, metrics, arrays)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when the save going on, if any, is finished on all processes.

        Raises:
          StorageError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, self._saved = self._saved, -1

        def result() -> None:
            with self._storage_errors(step):
                pending.result()

        processes.together(f"checkpoint {step} finished", result, _SAVE_SECONDS)
        self._saved = step

    def close(self) -> None:
        """Waits for the save going on and releases the threads.

        Raises:
          StorageError: it could not be written.
        """
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._orbax.close()

    def _prepare(self, step: int, size: int) -> None:
        """Removes what interrupted saves left; makes the directory if `size` bytes fit in."""
        self.directory.mkdir(parents=True, exist_ok=True)
        finished = set(self.steps())
        for path in self.directory.iterdir():
            if path.name.isdigit() and int(path.name) not in finished:
                shutil.rmtree(path)
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise self._not_written(step, f"it needs {_human(size)}, {_human(free)} are free")
        self._path(step).mkdir()

    def _finish(
        self, step: int, text: str, metrics: dict[str, float], arrays: dict[str, Any]
    ) -> None:
        """In the background: waits for the arrays, then makes the checkpoint a finished one."""
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            manifests.write_durably(self._path(step) / _METADATA, text)
            manifests.finish(self._path(step), step, metrics, arrays)
            self._discard_old()

    def _discard_old(self) -> None:
        steps = self.steps()
        kept = set(steps[-self._keep_last :])
        if self._keep_every:
            kept |= {step for step in steps if step % self._keep_every == 0}
        if self._best_metric is not None:
            kept.add(self.best())
        for step in steps:
            if step not in kept:
                (self._path(step) / manifests.MANIFEST).unlink()
                shutil.rmtree(self._path(step))

    @contextlib.contextmanager
    def _storage_errors(self, step: int) -> Iterator[None]:
        """Turns what a full or forbidden disk makes of a save into one sentence, and frees it."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            sign = next((sign for sign in _STORAGE_SIGNS if sign in str(error)), None)
            if isinstance(error, OSError):
                sign = error.strerror or str(error)
            if sign is None:
                raise
            if jax.process_index() == 0 and step not in self.steps():
                _remove(self._path(step))
            raise self._not_written(step, sign) from error

    def _not_written(self, step: int, why: str) -> StorageError:
        last = self.latest()
        intact = "no earlier one exists" if last is None else f"step {last} is intact"
        return StorageError(
            f"checkpoint of step {step} could not be written to {self.directory} ({why}); "
            f"{intact}; free space or choose another directory, then start again."
        )

    # --- reading --------------------------------------------------------------------------------

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """Reads a whole state, every array straight to where it shall live.

        Args:
          abstract_state: tree of ShapeDtypeStructs (or arrays) with the shapes, dtypes and
            shardings wanted; the mesh may be another than the one it was saved from. A leaf without
            a sharding goes to the first local device, a numpy leaf stays in numpy.
          step: which checkpoint; the newest by default.

        Raises:
          CheckpointError: no such checkpoint; it is damaged; or its arrays are not exactly those of
            `abstract_state` (missing, extra and mis-shaped ones are listed).
        """
        step = self._choose(step)
        manifest = self._manifest(step)
        leaves, structure = jax.tree.flatten(abstract_state)
        paths = rules.leaf_paths(abstract_state)
        wanted = dict(zip(paths, leaves, strict=True))
        self._check_fit(step, manifest["arrays"], wanted)
        self._verify(step, manifest)
        found = self._read(step, manifest["arrays"], wanted)
        return jax.tree.unflatten(structure, [found[path] for path in paths])

    def read_params(self, step: int | None = None, prefix: str = "params") -> dict[str, Any]:
        """Reads one part of a state into host memory, without the model.

        Args:
          step: which checkpoint; the newest by default.
          prefix: path of the part, such as 'params', 'ema', or 'params/encoder'.

        Returns:
          Nested dict of numpy arrays, with the prefix taken off.

        Raises:
          CheckpointError: no such checkpoint, no such part, or it is damaged.
        """
        step = self._choose(step)
        manifest = self._manifest(step)
        start = prefix.rstrip("/") + "/"
        wanted = {path: np.empty(0) for path in manifest["arrays"] if path.startswith(start)}
        if not wanted:
            parts = ", ".join(sorted({path.split("/")[0] for path in manifest["arrays"]}))
            raise CheckpointError(
                f"checkpoint of step {step} in {self.directory} has no '{prefix}'; it has {parts}."
            )
        self._verify(step, manifest)
        found = self._read(step, manifest["arrays"], wanted)
        return rules.unflatten({path.removeprefix(start): array for path, array in found.items()})

    def _read(
        self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> dict[str, Any]:
        arguments = {path: _restore_argument(leaf) for path, leaf in wanted.items()}
        try:
            tree = self._orbax.restore(
                self._path(step) / _ARRAYS,
                args=ocp.args.PyTreeRestore(
                    item=rules.unflatten(wanted),
                    restore_args=rules.unflatten(arguments),
                    partial_restore=True,
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(step, f"{type(error).__name__} while reading") from error
        found = dict(zip(rules.leaf_paths(tree), jax.tree.leaves(tree), strict=True))
        # A partial restore leaves what it does not find as it was given: check that all was read.
        for path in wanted:
            array = found.get(path)
            if not isinstance(array, jax.Array | np.ndarray) or (
                [list(array.shape), str(array.dtype)] != saved[path]
            ):
                raise self._damaged(step, f"'{path}' could not be read")
        return {path: found[path] for path in wanted}

    def _check_fit(self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Raises CheckpointError unless the arrays are those wanted."""
        problems = []
        if missing := [path for path in wanted if path not in saved]:
            problems.append(f"not in the checkpoint: {_spell(missing)}")
        if extra := [path for path in saved if path not in wanted]:
            problems.append(f"only in the checkpoint: {_spell(extra)}")
        expected = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in wanted.items()}
        differing = [
            f"{path} is {_spell_array(*saved[path])} there, {_spell_array(*here)} here"
            for path, here in expected.items()
            if path in saved and saved[path] != here
        ]
        if differing:
            problems.append(_spell(differing))
        if problems:
            raise CheckpointError(
                f"checkpoint of step {step} in {self.directory} is of another model or optimizer; "
                f"{'; '.join(problems)}."
            )

    # --- finding and checking -------------------------------------------------------------------

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def _choose(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no finished checkpoint in {self.directory}.")
        if step is not None and step not in steps:
            raise CheckpointError(
                f"no finished checkpoint of step {step} in {self.directory}; "
                f"there is {', '.join(map(str, steps))}."
            )
        return steps[-1] if step is None else step

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest = manifests.read(self._path(step))
        if manifest is None:
            raise self._damaged(step, manifests.MANIFEST)
        if manifest["format"] != manifests.FORMAT:
            raise CheckpointError(
                f"checkpoint of step {step} in {self.directory} has format {manifest['format']}; "
                f"this version reads format {manifests.FORMAT}."
            )
        return manifest

    def _verify(self, step: int, manifest: Mapping[str, Any]) -> None:
        """Raises CheckpointError if a file has changed; each process checks its share of them."""
        names = sorted(manifest["files"])[jax.process_index() :: jax.process_count()]
        damaged = manifests.damaged_files(self._path(step), manifest, names)
        count = len(damaged)
        if jax.process_count() > 1:
            count = int(np.sum(multihost_utils.process_allgather(np.int32(count))))
        if count:
            raise self._damaged(step, _spell(damaged) or "found by another process")

    def _damaged(self, step: int, what: str) -> CheckpointError:
        others = (other for other in reversed(self.steps()) if other != step)
        good = next((other for other in others if manifests.is_intact(self._path(other))), None)
        advice = (
            "no other checkpoint is intact"
            if good is None
            else f"the last good one is step {good}: delete {self._path(step)} to go on from it"
        )
        return CheckpointError(
            f"checkpoint of step {step} in {self.directory} is damaged ({what}); {advice}."
        )


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs a traceback, several times, for each error that it also raises."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _restore_argument(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, np.ndarray | np.generic):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(
        sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype, restore_type=jax.Array
    )


def _remove(path: pathlib.Path) -> None:
    """Removes a directory that threads unaware of a failed save may be writing to for a moment.

    They make folders anew as they write, so it is gone only once it has stayed away for a second.
    """
    absent = 0
    for _ in range(200):
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)
            absent = 0
        absent += 1
        if absent > 20:
            return
        time.sleep(0.05)


def _human(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _spell_array(shape: Iterable[int], dtype: Any) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _spell(items: Sequence[str], listed: int = 5) -> str:
    more = f" and {len(items) - listed} more" if len(items) > listed else ""
    return ", ".join(items[:listed]) + more
