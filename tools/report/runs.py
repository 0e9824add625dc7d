"""A run directory, read for a report: config, records, facts, pictures, and figures from them."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from encoders.errors import ConfigError
from encoders.training.metrics import read_facts, read_metrics, read_status

# Kinds of evaluators, the most telling first, and their names in a report.
KINDS = {
    "linear_probe": "Linear probe",
    "frame_probe": "Linear probe of frames",
    "ctc": "Transcripts",
    "classification": "Classification",
    "knn": "k nearest neighbours",
    "few_shot": "Few-shot ridge",
    "fine_tuning": "Fine-tuning",
    "masked_accuracy": "Hidden tokens",
    "sts": "Sentence similarity",
    "retrieval": "Retrieval",
    "zero_shot": "Zero-shot classification",
    "image_text_retrieval": "Image–text retrieval",
    "reconstruction": "Reconstruction",
}
BASELINES = {
    "pixels": "Raw pixels",
    "bag_of_words": "Bag of words",
    "mfcc": "Cepstra",
    "random": "Random weights",
}


@dataclasses.dataclass(frozen=True)
class Probe:
    """The last result of an evaluator that reports an accuracy.

    Attributes:
      key: the evaluator's name in the config.
      kind: what it is, such as 'linear_probe'.
      values: metric -> value.
      step: when.
      data: what it was fitted to and tested on, in words.
    """

    key: str
    kind: str
    values: Mapping[str, float]
    step: int
    data: str


class Run:
    """What there is to say about one run.

    Raises:
      ConfigError: the directory holds no run.
    """

    def __init__(self, directory: str, color: str):
        self.directory = pathlib.Path(directory)
        path = self.directory / "config.json"
        if not path.is_file():
            raise ConfigError(f"{directory}: there is no run, it has no config.json.")
        self.color = color
        self.name = self.directory.resolve().name
        self.config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.records = read_metrics(self.directory)
        self.facts = read_facts(self.directory)
        self.status = read_status(self.directory) or {}

    # --- curves -----------------------------------------------------------------------------------

    def metrics(self) -> list[str]:
        """Names of all metrics, in the order they first appear."""
        names = dict.fromkeys(name for record in self.records for name in record)
        return [name for name in names if name not in ("step", "time")]

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values; a value that was not finite is nan."""
        found = [(r["step"], r[metric]) for r in self.records if metric in r]
        return [s for s, _ in found], [math.nan if v is None else v for _, v in found]

    def last(self, metric: str) -> float | None:
        """The last value of a metric, or None."""
        values = [v for v in self.curve(metric)[1] if math.isfinite(v)]
        return values[-1] if values else None

    def typical(self, metric: str) -> float | None:
        """The median over the run; the first window, which warms up, does not count."""
        values = [v for v in self.curve(metric)[1] if math.isfinite(v)]
        return float(np.median(values[1:] or values)) if values else None

    # --- figures ----------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The last step that is known of."""
        steps = [record["step"] for record in self.records]
        return max(self.status.get("step") or 0, max(steps, default=0))

    @property
    def sessions(self) -> Sequence[Mapping[str, Any]]:
        """One for every time the run was started."""
        return self.facts.get("sessions", [])

    @property
    def seconds(self) -> float | None:
        """How long it ran, over all sessions, evaluation and compilation included."""
        times = [record["time"] for record in self.records]
        starts = [session["started"] for session in self.sessions]
        if not times or not starts:
            return None
        total = 0.0
        for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
            within = [time for time in times if start <= time < end]
            total += max(within) - start if within else 0.0
        return total

    @property
    def device(self) -> str:
        """'2 × NVIDIA H200', '1 × cpu (x86_64, 2 cores)'."""
        if not self.sessions:
            return "unknown device"
        devices = self.sessions[-1]["devices"]
        kind = f"{devices['count']} × {devices['kind']}"
        if devices["platform"] == "cpu":
            kind += f" ({devices['host']})"
        processes = devices["processes"]
        return kind if processes == 1 else f"{kind}, {processes} processes"

    # --- evaluation -------------------------------------------------------------------------------

    def evaluators(self) -> list[str]:
        """Names of the evaluators that have reported, the most telling first."""
        rank = {kind: place for place, kind in enumerate(KINDS)}
        seen = {name.split("/")[1] for name in self.metrics() if name.startswith("eval/")}
        return sorted(seen, key=lambda key: (rank.get(self.kind(key), len(rank)), key))

    def values(self, evaluator: str) -> dict[str, float]:
        """The last value of every metric of an evaluator."""
        prefix = f"eval/{evaluator}/"
        found = {m[len(prefix) :]: self.last(m) for m in self.metrics() if m.startswith(prefix)}
        return {metric: value for metric, value in found.items() if value is not None}

    def probes(self) -> list[Probe]:
        """The last results of the evaluators that report an accuracy."""
        found = []
        for key in self.evaluators():
            values = self.values(key)
            if "accuracy" in values:
                steps, _ = self.curve(f"eval/{key}/accuracy")
                found.append(Probe(key, self.kind(key), values, steps[-1], self._data(key)))
        return found

    def kind(self, evaluator: str) -> str:
        """'linear_probe' of an evaluator of any name."""
        return self.config.get("evaluators", {}).get(evaluator, {}).get("name", evaluator)

    def chance(self, probe: Probe) -> float | None:
        """Accuracy of always guessing one class, if that is known."""
        if "chance" in probe.values:
            return probe.values["chance"]
        classes = self.config.get("objective", {}).get("num_classes")
        return 1 / classes if classes and probe.kind == "classification" else None

    def _data(self, evaluator: str) -> str:
        section = self.config.get("evaluators", {}).get(evaluator, {})
        sizes = self.facts.get("evaluators", {}).get(evaluator, {})
        words = []
        for role, text in (("train", "fitted to {}"), ("test", "tested on {}")):
            if role in section:
                what = source_in_words(section[role])
                if role in sizes:
                    what += f" ({sizes[role]:,} examples)"
                words.append(text.format(what))
        return ", ".join(words)

    # --- pictures ---------------------------------------------------------------------------------

    def pictures(self) -> dict[str, list[tuple[int | None, pathlib.Path]]]:
        """Evaluator -> (step, PNG file), oldest first."""
        found: dict[str, list[tuple[int | None, pathlib.Path]]] = {}
        for path in sorted((self.directory / "pictures").glob("*.png")):
            label, step = re.fullmatch(r"(.*?)(?:_(\d{8,}))?", path.stem).groups()
            found.setdefault(label, []).append((None if step is None else int(step), path))
        return found


def source_in_words(section: Mapping[str, Any]) -> str:
    """'fashion_mnist test' for a section of a source."""
    words = [str(section.get("dataset") or section.get("path") or section.get("name"))]
    if section.get("split"):
        words.append(str(section["split"]))
    start, stop = section.get("start", 0.0), section.get("stop", 1.0)
    if (start, stop) != (0.0, 1.0):
        words.append(f"[{100 * start:g}%:{100 * stop:g}%]")
    return " ".join(words)
