"""Clusters the frames of clips, for HuBERT to guess their numbers.

  python -m tools.cluster --features mfcc --rate 16000 --clusters 100 --data D --output UNITS
  python -m tools.cluster --model M --layer 5 --clusters 500 --fraction 0.1 --data D --output UNITS

D is a folder of sound files, a table of them, or what tools.prepare_data wrote; --config C in place
of --data takes the clips that the config C trains on, so that those it holds out for evaluation are
in no cluster. Blocks are counted from 0, so that HuBERT's sixth is --layer 5. Clips of another rate
are resampled, and several channels averaged.

Train on the clusters with data.source = dict(name='units', path=UNITS, source=dict(name='audio',
path=D)), as such a C has it, preprocessing.units_per_second as printed and objective.num_clusters
as asked for. --normalize gives the frames of every clip mean 0 and variance 1 first, so that
clusters are less of who speaks and more of what is said, in clips of several words. Where clips
have labels, it is printed what clusters say about them: purity, the accuracy of guessing a frame's
label by its cluster, and the part of the labels' entropy that clusters tell (PNMI).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from encoders.errors import ConfigError, DataError, exit_cleanly
from launch.flags import Parser
from tools.clips import (
    Clips,
    frames_of,
    lenient,
    limit_seconds,
    longest,
    open_clips,
    over_clips,
    preprocessing_of,
)
from tools.texts import report_corrupt


class Frames(NamedTuple):
    """What makes frames.

    Attributes:
      function: (variables, batch) -> ([B, T, D], [B, T] bool).
      variables: of it.
      preprocessing: of its clips.
      least: samples that a clip has at least.
      encoder: that makes them; None for cepstra.
      per_second: how many.
      made_of: what to write down about them.
    """

    function: Callable
    variables: Any
    preprocessing: Any
    least: int
    encoder: Any
    per_second: float
    made_of: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Clusters, and writes a directory of units."""
    flags = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if flags.model is None:
        frames = _of_mfcc(flags.rate, flags.normalize)
    else:
        frames = _of_model(flags.model, flags.layer, flags.normalize)
    most = longest(frames.encoder, flags.max_seconds, frames.preprocessing.sample_rate)
    if flags.config is not None:
        source = _training_source(flags.config, frames.preprocessing)
        clips = lenient(source, frames.preprocessing, frames.least, most)
    else:
        clips = open_clips(
            flags.data,
            flags.split or "train",
            frames.preprocessing,
            least=frames.least,
            most=most,
            flag="--data",
        )
    report = cluster(
        frames,
        clips,
        flags.output,
        clusters=flags.clusters,
        seed=flags.seed,
        fraction=flags.fraction,
        max_frames=flags.max_frames,
        batch_size=flags.batch_size,
        method=flags.method,
        restarts=flags.restarts,
        iterations=flags.iterations,
    )
    print(
        f"wrote {flags.output}: {report['frames']:,} units of {report['clips']:,} clips, "
        f"{report['units_per_second']:g} a second, {report['used']:,} of {flags.clusters:,} "
        f"clusters used; mean squared distance {report['inertia']:.5g}"
    )
    if "purity" in report:
        print(
            f"of {report['labels']} labels: purity {report['purity']:.1%} (most frequent label "
            f"{report['most_frequent']:.1%}), PNMI {report['pnmi']:.3f}"
        )
    report_corrupt(clips.corrupt, "clip")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a run, a checkpoint, or other weights of an encoder")
    what.add_argument("--features", choices=("mfcc",), help="what to cluster in its place")
    parser.add_argument("--layer", type=int, help="of --model, from 0; without it the final frames")
    parser.add_argument("--rate", type=int, default=16000, help="samples per second, of --features")
    parser.add_argument("--normalize", action="store_true", help="the frames of every clip")
    parser.add_argument("--clusters", type=int, required=True, help="how many")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", help="clips")
    data.add_argument("--config", help="of a run: the clips that it trains on")
    parser.add_argument("--split", help="of prepared clips of --data; 'train' by default")
    parser.add_argument("--output", required=True, help="the directory to write")
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="of the clips, to find clusters"
    )
    parser.add_argument(
        "--max-frames", type=int, default=10_000_000, help="to find clusters with, at most"
    )
    parser.add_argument("--method", choices=("mini_batch", "full"), default="mini_batch")
    parser.add_argument("--restarts", type=int, default=20, help="of k-means++; the best is taken")
    parser.add_argument("--iterations", type=int, default=100, help="passes over the frames")
    parser.add_argument("--batch-size", type=int, default=16, help="clips per step")
    parser.add_argument("--seed", type=int, default=0)
    limit_seconds(parser)
    flags = parser.parse(arguments)
    for name in ("clusters", "max_frames", "restarts", "iterations", "batch_size", "rate"):
        if getattr(flags, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: expected a number from 1, got {getattr(flags, name)}.")
    if not 0 < flags.fraction <= 1:
        raise ConfigError(f"--fraction: expected a number in (0, 1], got {flags.fraction}.")
    if flags.layer is not None and flags.model is None:
        raise ConfigError("--layer: is of --model; --features has none.")
    if flags.split is not None and flags.config is not None:
        raise ConfigError("--split: is of --data; --config says its own.")
    if pathlib.Path(flags.output).exists():
        raise ConfigError(f"--output {flags.output}: exists; remove it, or name another directory.")
    return flags


def _of_mfcc(rate: int, normalize: bool = False) -> Frames:
    from encoders.data.audio import AudioPreprocessing
    from encoders.layers.spectrogram import hubert_mfcc

    least = math.ceil(rate / 40)  # a frame of 25 ms
    preprocessing = AudioPreprocessing(sample_rate=rate, min_samples=least)

    def frames(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        mask = preprocessing.encoder_inputs(batch)[1]["mask"]
        return hubert_mfcc(batch["waveform"], mask, sample_rate=rate, normalize=normalize)

    made_of = {"features": "mfcc", "normalized": normalize}
    return Frames(frames, {}, preprocessing, least, None, 100.0, made_of)


def _of_model(path: str, layer: int | None, normalize: bool = False) -> Frames:
    import encoders
    from encoders.layers.norm import normalized_over_time

    encoder = encoders.load(path)
    preprocessing, module = preprocessing_of(encoder, path), encoder.module
    of_model = frames_of(module, preprocessing, layer)

    def frames(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        tokens, real = of_model(variables, batch)
        return normalized_over_time(tokens, real) if normalize else tokens, real

    return Frames(
        frames,
        encoder.variables,
        preprocessing,
        module.receptive_field,
        module,
        preprocessing.sample_rate / module.stride,
        {"model": path, "layer": layer, "normalized": normalize},
    )


def _training_source(config: str, preprocessing: Any) -> Any:
    """The clips that a config trains on, without the units that they are about to get.

    Raises:
      ConfigError: it trains on something else.
    """
    from encoders.config import build, load_config, to_plain
    from encoders.data import SOURCES

    found = to_plain(load_config(config))
    section = found.get("data", {}).get("source", {})
    if found.get("preprocessing", {}).get("name") != "audio" or "name" not in section:
        raise ConfigError(f"--config {config}: trains on no clips of sound.")
    # 'joined' decodes by it what `lenient` would otherwise decode.
    wanted = dataclasses.replace(preprocessing, resample=True, mix=True)
    return build(SOURCES, _without_units(section, config), "data.source", preprocessing=wanted)


def _without_units(section: Mapping[str, Any], config: str) -> Mapping[str, Any]:
    if section["name"] == "mixture":
        sources = tuple(_without_units(source, config) for source in section["sources"])
        return {**section, "sources": sources}
    if section["name"] == "units":
        part = {name: section[name] for name in ("start", "stop") if name in section}
        inner = _without_units(section["source"], config)
        if part and (inner["name"] == "mixture" or {"start", "stop"} & inner.keys()):
            raise ConfigError(
                f"--config {config}: 'units' has {' and '.join(part)} around a source that is a "
                "mixture or has its own; give them to the sources within alone."
            )
        return {**part, **inner}
    return section


def cluster(
    frames: Frames,
    clips: Clips,
    output: str,
    *,
    clusters: int,
    seed: int = 0,
    fraction: float = 1.0,
    max_frames: int = 10_000_000,
    batch_size: int = 16,
    mesh: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Finds clusters in a part of the clips, and writes those of all frames.

    Args:
      frames: makes them.
      clips: to go through.
      output: directory to write, see `encoders.data.units`.
      clusters: how many.
      seed: of the choice of clips and of k-means.
      fraction: of the clips that clusters are found in.
      max_frames: these have at most so many frames.
      batch_size: clips per step.
      mesh: devices; None for all.
      **options: of `kmeans`.

    Returns:
      What was found, as it is written to info.json, 'frames', 'clips' and 'used', how many clusters
      have a frame.

    Raises:
      DataError: there are fewer frames than clusters.
    """
    from encoders.data.units import write_units
    from encoders.evaluation.clustering import assign, kmeans
    from encoders.parallel.mesh import make_mesh

    mesh = make_mesh() if mesh is None else mesh
    order = np.random.default_rng(seed).permutation(len(clips))
    chosen = order[: math.ceil(fraction * len(clips))]
    parts: list[np.ndarray] = []
    run = dict(batch_size=batch_size, mesh=mesh)
    for _, (features, mask) in over_clips(
        frames.function, frames.variables, clips, rows=chosen, **run
    ):
        parts.append(features[mask])
        if sum(map(len, parts)) >= max_frames:
            break
    if sum(map(len, parts)) < clusters:
        first = f"; the first clip left out: {clips.corrupt[0]}" if clips.corrupt else ""
        raise DataError(
            f"--clusters {clusters}: need as many frames, and there are {sum(map(len, parts))}"
            f"{first}."
        )
    found = kmeans(_joined(parts, max_frames), clusters, seed=seed, mesh=mesh, **options)
    clips.corrupt.clear()  # the second pass meets them again

    def nearest(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        features, mask = frames.function(variables["frames"], batch)
        return assign(features, variables["centroids"])[0], mask

    variables = {"frames": frames.variables, "centroids": found.centroids}
    units = [np.zeros(0, np.uint16)] * len(clips)
    labels = np.full(len(clips), -1)
    for batch, (numbers, mask) in over_clips(nearest, variables, clips, **run):
        for row, example, own, real in zip(batch.rows, batch.examples, numbers, mask, strict=True):
            units[row] = own[real].astype(np.uint16)
            labels[row] = example.get("label", -1)
    info = {
        "units_per_second": frames.per_second,
        **frames.made_of,
        "sample_rate": frames.preprocessing.sample_rate,
        "seed": seed,
        "inertia": found.inertia,
        **_told(units, labels),
    }
    names = [clips.source.describe(row) for row in range(len(clips))]
    write_units(output, units, names, found.centroids, info)
    every = np.concatenate(units)
    counts = {"frames": len(every), "clips": sum(1 for one in units if len(one))}
    return {**info, **counts, "used": len(np.unique(every))}


def _joined(parts: list[np.ndarray], most: int) -> np.ndarray:
    """The first `most` rows of parts [N, D], of which the list is emptied meanwhile.

    Together they may be all that there is room for, so that none is there twice.
    """
    end = sum(map(len, parts))
    joined = np.empty((min(end, most), parts[0].shape[1]), parts[0].dtype)
    while parts:
        part = parts.pop()
        end -= len(part)
        kept = part[: max(most - end, 0)]
        joined[end : end + len(kept)] = kept
    return joined


def _told(units: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """What clusters say about labels [N], -1 where there is none; nothing where there are none."""
    from encoders.evaluation.scores import contingency, label_information, purity

    known = np.flatnonzero(labels >= 0)
    if not len(known):
        return {}
    of_frames = np.repeat(labels[known], [len(units[row]) for row in known])
    table = contingency(np.concatenate([units[row] for row in known]), of_frames)
    return {
        "labels": int((table.sum(0) > 0).sum()),
        "purity": purity(table),
        "most_frequent": float(table.sum(0).max() / table.sum()),
        "pnmi": label_information(table),
    }


if __name__ == "__main__":
    exit_cleanly(main)
