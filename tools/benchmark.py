"""Measures the training step of a config, and the same step in PyTorch beside it.

    python -m tools.benchmark --config configs/vit_s16_in1k.py --batch-size 16 --peer timm

Prints one JSON line, and on stderr what is known so far, block by block, so that a run that is cut
off has said something. `step` figures are of the whole training step (forward, backward, optimizer,
and what the trainer checks in it) on a batch that is already on the device; `fed` ones of the same
step behind the real pipeline and prefetch, on synthetic images or, with --with-data, on the
config's own. With --peer, blocks of our steps and of the peer's alternate (one, the other, one,
...), both warm, the peer in a process of its own, and `ratio` is the median over pairs of
neighbouring blocks. On a machine that does other work too, wall clock says little: there, pin the
command to one core (taskset -c 0) and read `processor_ratio`, the same of processor seconds, which
are what the step costs whoever else wants the core. --versus compares with the same config after
overrides instead, for example --versus objective.encode_mask_tokens=True.

Text is the first batch of the config's own data, or of the bundled one: how much of a row is
padding is a matter of the lengths of real texts. Speeds are then also in real tokens per second,
and `token_ratio` is the ratio of those: our rows are packed, the peer's hold one text each and
padding, and the peer is given as many rows as ours, with texts of the same data. Pairs of images
and texts are random ones, and the bundled emoji behind the pipeline. Clips of sound are noise, as
long as clips may be, and the bundled digits behind the pipeline; their speed is also in hours of
sound per hour of a device. With --with-data the `fed` step is compiled for each length of buckets.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import copy
import json
import os
import pathlib
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from encoders.config import apply_override
from encoders.errors import ConfigError, exit_cleanly
from encoders.parallel.host import retain_freed_memory
from launch.flags import parse_flags

_BLOCKS = 5
_TEXT, _PAIRS, _CLIPS = "sample:peps", "sample:emoji", "sample:digits"

_Times = tuple[float, float]  # wall clock and processor seconds
_Timer = Callable[[int], _Times]  # steps -> how long they took together


def _flags(parser: argparse.ArgumentParser) -> None:
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--peer", choices=("timm", "transformers", "open_clip"), help="what to compare with"
    )
    other.add_argument(
        "--versus",
        action="append",
        metavar="A.B=VALUE",
        help="compare with the same config after this override; may be repeated",
    )
    parser.add_argument("--batch-size", type=int, help="default: the config's")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, in at most 5 blocks")
    parser.add_argument("--with-data", action="store_true", help="feed from the config's own data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON line, and progress on stderr."""
    flags, config = parse_flags(__doc__.splitlines()[0], arguments, extend=_flags)
    if flags.steps < 1 or (flags.batch_size is not None and flags.batch_size < 1):
        raise ConfigError("--steps and --batch-size: expected numbers from 1.")
    retain_freed_memory()
    if flags.peer:  # leave the peer its share of the accelerator
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(json.dumps(benchmark(config, flags)))
    return 0


def benchmark(config: Any, flags: argparse.Namespace) -> dict[str, Any]:
    """Measures what the module says; keys that end in _ms are milliseconds, _mib mebibytes."""
    from encoders.training.experiment import Experiment
    from tools.benchmark_peers import Peer, peer_spec

    config = _prepared(config, flags)
    experiment = Experiment(config)
    rows = experiment.sections.batch_size
    lengths = evenly(_text_lengths(experiment), rows) if _is_text(config) else ()
    spec = peer_spec(flags.peer, experiment, rows, lengths) if flags.peer else None
    # Before any state is there, so that nothing else is in the caches.
    peak, peak_source = _peak(experiment.mesh.devices.flat[0], experiment.mesh.size)
    step = _Step(experiment)
    result = _machine(experiment) | {"batch_size": rows} | step.facts()
    _say(_rounded(result))
    blocks = min(flags.steps, _BLOCKS)
    with contextlib.ExitStack() as stack:
        other: Any = None
        if flags.versus:
            other = _Step(Experiment(_overridden(config, flags.versus)))
        elif spec:
            other = stack.enter_context(Peer(spec))
        mine, theirs = _alternate(
            step.seconds, other and other.seconds, blocks, flags.steps // blocks
        )
        if other is not None:
            about = {"overrides": flags.versus} | other.facts() if flags.versus else other.info
            tokens = other.tokens if flags.versus else sum(lengths)
            speed = _speed(theirs, rows, tokens) | _hours(experiment, theirs, rows)
            result["versus" if flags.versus else "peer"] = about | speed
            if step.tokens:
                per_step = [b[0] / a[0] for a, b in zip(mine, theirs, strict=True)]
                result["token_ratio"] = statistics.median(per_step) * step.tokens / tokens
            for name, clock in (("ratio", 0), ("processor_ratio", 1)):
                ratios = [b[clock] / a[clock] for a, b in zip(mine, theirs, strict=True)]
                result[name] = statistics.median(ratios)
                result[f"{name}s"] = ratios
    result |= _speed(mine, rows, step.tokens) | _hours(experiment, mine, rows)
    result["mfu"] = experiment.flops_per_example() * result["examples_per_second"] / peak
    result["mfu_of"] = peak_source
    source = "config" if flags.with_data else "synthetic"
    result["fed"] = {"source": source} | step.fed(flags.steps)
    result["peak_process_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    result["load"] = list(os.getloadavg())
    return _rounded(result)


class _Step:
    """A compiled, warm training step with its state, and a batch that is on the device."""

    def __init__(self, experiment: Any):
        from encoders.parallel.mesh import to_device

        self.experiment = experiment
        self._rows = experiment.sections.batch_size
        batch = _first_batch(experiment)
        # Real tokens of a step, if it is of text alone.
        text = "ids" in batch and "image" not in batch
        self.tokens = int((batch["segments"] > 0).sum()) if text else 0
        self._batch = to_device(batch, experiment.mesh)
        began = time.perf_counter()
        lowered = experiment.step().lower(experiment.abstract_state, self._batch)
        self._compiled = lowered.compile()
        self._compile_seconds = time.perf_counter() - began
        self._state = experiment.create_state()
        self.seconds(2)

    def seconds(self, steps: int) -> _Times:
        """How long that many steps take: wall clock, and processor time of all cores."""
        import jax

        began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._state, metrics = self._compiled(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - began[0], time.process_time() - began[1]

    def facts(self) -> dict[str, Any]:
        """What is known without timing steps."""
        import jax

        memory = self._compiled.memory_analysis()
        needed = (  # by one device at once: state, batch, results, temporaries
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        shapes = jax.tree.leaves(self.experiment.param_shapes)
        return {
            "parameters": sum(leaf.size for leaf in shapes),
            "flops_per_example": self.experiment.flops_per_example(),
            "compile_seconds": self._compile_seconds,
            "peak_device_mib": needed / 2**20,
        }

    def fed(self, steps: int) -> dict[str, float]:
        """Examples per second behind the pipeline, and how much of the time was spent waiting."""
        import jax

        from encoders.data.prefetch import prefetch
        from encoders.parallel.mesh import to_device
        from encoders.training.loop import compile_steps

        pipeline, run = self.experiment.pipeline(), self._compiled
        if pipeline.sizes is not None:
            every = [pipeline.batcher.empty(bucket) for bucket in range(pipeline.batcher.buckets)]
            run, _ = compile_steps(self.experiment, self._state, every)
        batches = pipeline.iterate(0, steps + 1)
        mesh, depth = self.experiment.mesh, self.experiment.sections.data.prefetch
        with (
            contextlib.closing(batches),
            prefetch(batches, lambda batch: to_device(batch, mesh), depth) as ready,
        ):
            next(ready)  # the first batch is waited for by nature
            before, began = ready.waited, time.perf_counter()
            for batch in ready:
                self._state, _ = run(self._state, batch)
                # Step by step, so that a wait for data cannot hide behind steps in flight.
                jax.block_until_ready(self._state)
            seconds = time.perf_counter() - began
            waited = ready.waited - before
        return {
            "examples_per_second": steps * self._rows / seconds,
            "data_wait_percent": 100 * waited / seconds,
        }


def _machine(experiment: Any) -> dict[str, Any]:
    import jax

    return {
        "device": _device_name(experiment.mesh.devices.flat[0]),
        "devices": experiment.mesh.size,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "compute_dtype": str(experiment.compute_dtype),
    }


def _speed(times: Sequence[_Times], rows: int, tokens: int) -> dict[str, Any]:
    """Median and extremes of the wall clock, and processor time, of a step, over blocks."""
    wall = [1e3 * pair[0] for pair in times]
    text = {"tokens_per_second": 1e3 * tokens / statistics.median(wall), "real_tokens": tokens}
    return (text if tokens else {}) | {
        "examples_per_second": 1e3 * rows / statistics.median(wall),
        "step_ms": {"median": statistics.median(wall), "min": min(wall), "max": max(wall)},
        "processor_ms": 1e3 * statistics.median(pair[1] for pair in times),
    }


def _hours(experiment: Any, times: Sequence[_Times], rows: int) -> dict[str, float]:
    """Hours of sound that a device hears in one, where clips are as long as they may be."""
    rate = getattr(experiment.preprocessing, "sample_rate", None)
    if rate is None:
        return {}
    seconds = experiment.preprocessing.max_samples / rate
    step = statistics.median(pair[0] for pair in times)
    return {"audio_hours_per_device_hour": rows * seconds / step / experiment.mesh.size}


def _prepared(config: Any, flags: argparse.Namespace) -> Any:
    """The config without what a step does not need: evaluators, weights to start from, the data."""
    with config.unlocked():
        config.evaluators, config.checkpoint = {}, {}  # it measures no scores, and keeps none
        config.init_from = None
        if flags.batch_size is not None:
            config.batch_size = flags.batch_size
        if not flags.with_data and _is_text(config):
            config.data.source = {"name": "tokens", "path": _TEXT, "split": "train"}
            config.preprocessing.tokenizer = f"{_TEXT}/tokenizer.json"
            config.preprocessing.vocabulary = None
            config.data.update(examples_per_epoch=None, transforms=(), processes=0)
        elif not flags.with_data and config.preprocessing.name == "image_text":
            config.data.source = {"name": "sample", "dataset": "emoji", "split": "train"}
            config.preprocessing.text.tokenizer = f"{_PAIRS}/tokenizer.json"
            config.preprocessing.text.vocabulary = None
            config.data.update(examples_per_epoch=None, processes=0)
        elif not flags.with_data and config.preprocessing.name == "audio":
            clips = {"name": "audio", "path": _CLIPS, "split": "test"}
            if config.data.source.get("name") == "units":
                directory = pathlib.Path(tempfile.mkdtemp(prefix="encoders-benchmark-"))
                atexit.register(shutil.rmtree, directory, ignore_errors=True)
                clips = in_clusters(clips, config.preprocessing, directory / "units")
            config.data.source = clips
            # The shortest of the digits lasts a seventh of a second.
            shortest = min(config.preprocessing.get("min_samples", 400), 2000)
            config.preprocessing.update(bucket_samples=None, resample=True, min_samples=shortest)
            config.data.update(examples_per_epoch=None, processes=0, max_corrupt_rate=None)
        elif not flags.with_data:
            epoch = config.data.get("examples_per_epoch")
            config.data.source = {
                "name": "synthetic",
                "image_size": tuple(config.preprocessing.image_size),
                "channels": config.preprocessing.channels,
                "num_classes": config.objective.get("num_classes", 10),
                "num_examples": epoch or 100_000,
            }
            config.data.processes = 0
    return config


def in_clusters(
    section: Any, preprocessing: Any, path: pathlib.Path, clusters: int = 1
) -> dict[str, Any]:
    """The source 'units' of clips whose units say nothing: 0, 1, ... in turns, of each clip.

    Args:
      section: config section of the clips, a source 'audio'.
      preprocessing: config section that may say the rates of samples and of units.
      path: where the units are, and are written if they are not.
      clusters: how many different ones.
    """
    import numpy as np

    from encoders.data import AudioPreprocessing
    from encoders.data.sources.audio import Audio
    from encoders.data.units import write_units

    if not path.exists():
        clips = Audio(**{name: section[name] for name in section if name != "name"})
        rates = {"sample_rate", "units_per_second"} & {*preprocessing}
        of = AudioPreprocessing(**{name: preprocessing[name] for name in rates})
        counts = [of.num_units(length) for length in clips.lengths(of.sample_rate)]
        units = [np.arange(count) % clusters for count in counts]
        names = [clips.describe(index) for index in range(len(clips))]
        info = {"units_per_second": of.units_per_second}
        write_units(path, units, names, np.zeros((clusters, 1)), info)
    return {"name": "units", "source": section, "path": str(path)}


def _overridden(config: Any, overrides: Sequence[str]) -> Any:
    changed = copy.deepcopy(config)
    for override in overrides:
        apply_override(changed, override)
    return changed


def _is_text(config: Any) -> bool:
    return config.preprocessing.name == "text"


def _text_lengths(experiment: Any) -> list[int]:
    """Tokens of the texts that our rows are packed from."""
    import numpy as np

    source = experiment.source
    return [int(n) for row in range(len(source)) for n in np.bincount(source[row]["segments"])[1:]]


def evenly(lengths: Sequence[int], rows: int) -> list[int]:
    """As many of the lengths as there are rows, evenly spread from the shortest to the longest."""
    ordered = sorted(lengths)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * rows)] for i in range(rows)]


def _first_batch(experiment: Any) -> dict[str, Any]:
    """Real texts, random pictures, and noise."""
    import numpy as np

    batch = experiment.example_batch(experiment.batch_rows)
    if {"ids", "waveform"} & {*batch}:
        found = experiment.pipeline().batch(0)
        # Clips that are as long as they may be, which those of the first bucket are not.
        longest = batch if "waveform" in batch else {}
        batch = {name: longest.get(name, value) for name, value in found.items()}
    if "image" in batch:
        rng = np.random.default_rng(0)
        batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    if "waveform" in batch:
        noise = 3000 * np.random.default_rng(0).standard_normal(batch["waveform"].shape)
        batch["waveform"] = noise.astype(np.int16)
    return batch


def _alternate(
    ours: _Timer, theirs: _Timer | None, blocks: int, steps: int
) -> tuple[list[_Times], list[_Times]]:
    """Seconds per step of our blocks, and of the peer's in between."""
    if theirs is not None:
        theirs(1)  # while ours was compiled and warmed up, the peer's caches went cold
    timers = [ours] if theirs is None else [ours, theirs]
    found: tuple[list[_Times], list[_Times]] = ([], [])
    for number in range(blocks):
        for timer, times, name in zip(timers, found, ("ours", "the other"), strict=False):
            wall, processor = timer(steps)
            times.append((wall / steps, processor / steps))
            _say(f"block {number + 1}, {name}: {times[-1][0]:.4g} s, processor {times[-1][1]:.4g}")
    return found


def _say(progress: Any) -> None:
    print(progress, file=sys.stderr, flush=True)


def _peak(device: Any, devices: int) -> tuple[float, str]:
    """FLOP/s of all devices together, and where the figure is from."""
    from encoders.parallel.chips import peak_flops

    known = peak_flops(device)
    if known is not None:
        return known * devices, f"{device.device_kind}, dense bf16, data sheet"
    return _measured_gemm(), "fp32 matrix products of size 2048 measured here"


def _measured_gemm(size: int = 2048, repeats: int = 6) -> float:
    """FLOP/s of the fastest of some square fp32 products."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.full((size, size), 0.5, jnp.float32)
    product = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(times)


def _device_name(device: Any) -> str:
    """The device's kind; for a CPU, the processor's own name where the system tells it."""
    if device.platform != "cpu":
        return device.device_kind
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or device.device_kind


def _rounded(value: Any) -> Any:
    """Floats to four significant digits: more would be noise."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    exit_cleanly(main)
