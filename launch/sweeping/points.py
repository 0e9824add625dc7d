"""The points of a sweep: read from beside a config, named, and remembered in sweep.json."""

from __future__ import annotations

import ast
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from encoders.config import construct, import_file, load_config, to_plain
from encoders.errors import ConfigError, StorageError

RECORD = "sweep.json"
NAME_LENGTH = 80

Fields = Mapping[str, Any]
Mode = Literal["min", "max"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `sweep()` returned.

    Attributes:
      points: {field: value} of each run; empty for a search.
      axes: field -> {kind, low, high} or {kind, values}, where values were drawn.
      trials: how many points a search tries; None where the points are known beforehand.
      seed: of a search.
      metric, mode: what runs are compared by; None for the defaults.
    """

    points: tuple[Mapping[str, Any], ...] = ()
    axes: Mapping[str, Mapping[str, Any]] | None = None
    trials: int | None = None
    seed: int = 0
    metric: str | None = None
    mode: Mode | None = None

    @property
    def fields(self) -> list[str]:
        """The fields that the sweep sets, in order."""
        return sorted({*(self.axes or ()), *(field for point in self.points for field in point)})


@dataclasses.dataclass
class Point:
    """One run of a sweep.

    Attributes:
      name: of its directory below the sweep's.
      fields: config field -> value.
      job: what the scheduler calls it; None before it is submitted, '' until that has a name.
      code: the exit code of its last end that was no success; None if there was none.
    """

    name: str
    fields: dict[str, Any]
    job: str | None = None
    code: int | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """'a.b=value' of each field."""
        return overrides_of(self.fields)


def read_plan(spec: str) -> Plan:
    """Calls the `sweep()` of a config file.

    Args:
      spec: path/to/config.py[:argument]; the argument is for `get_config` alone.

    Raises:
      ConfigError: there is no such file or function, or it returns no sweep.
    """
    path = pathlib.Path(spec.partition(":")[0])
    load_config(spec)  # says what is wrong with the path
    sweep = getattr(import_file(path), "sweep", None) if path.suffix == ".py" else None
    if sweep is None:
        raise ConfigError(f"--config: '{path}' defines no sweep() beside its get_config().")
    where = f"sweep() of {path}"
    try:
        found = sweep()
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
    if isinstance(found, list | tuple):
        found = {"points": found}
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: expected sweeps.grid() or a list of points, got {found!r}.")
    plan = construct(Plan, found, where)
    points = {}  # a draw may repeat a point, which is still one run
    for index, point in enumerate(plan.points):
        if not point:
            raise ConfigError(f"{where}: point {index} sets no field.")
        points.setdefault(key_of(point, f"{where}: point {index}"), point)
    if plan.trials is None and not points:
        raise ConfigError(f"{where}: there is no point in it.")
    if plan.trials is not None and not plan.axes:
        raise ConfigError(f"{where}: a search needs axes.")
    return dataclasses.replace(plan, points=tuple(json.loads(key) for key in points))


def overrides_of(fields: Fields) -> tuple[str, ...]:
    """'a.b=value' of each field, which `apply_override` reads as the same value."""
    return tuple(f"{field}={_literal(fields[field])}" for field in sorted(fields))


def key_of(fields: Fields, where: str = "a point") -> str:
    """One text for equal points, whatever the order of their fields.

    Raises:
      ConfigError: a value is not a finite number, text, None, or a list or dict of these.
    """
    try:
        return json.dumps(to_plain(fields), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {fields!r} cannot be written as JSON ({error}).") from error


# --- names ----------------------------------------------------------------------------------------


def name_of(index: int, fields: Fields) -> str:
    """'003-lr=0.001-wd=0.05': safe in paths and shells, at most NAME_LENGTH letters.

    Args:
      index: of the point among those of its sweep; makes the name unique.
      fields: what the point sets, in any order.
    """
    short = _short_names(sorted(fields))
    parts = [f"{short[field]}={_brief(fields[field])}" for field in sorted(fields)]
    return "-".join([f"{index:03d}", *parts])[:NAME_LENGTH].rstrip("-=.,")


def _short_names(fields: Sequence[str]) -> dict[str, str]:
    """'optimizer.weight_decay' -> 'wd', or as much more as tells it from the others."""
    short = {}
    for form in (_initials, _leaf, _safe):
        names = [form(field) for field in fields]
        for field, name in zip(fields, names, strict=True):
            if names.count(name) == 1:
                short.setdefault(field, name)
    return {field: short.get(field, _safe(field)) for field in fields}


def _leaf(field: str) -> str:
    return _safe(field.rpartition(".")[2])


def _initials(field: str) -> str:
    words = [word for word in _leaf(field).split("_") if word]
    return words[0] if len(words) == 1 else "".join(word[0] for word in words)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return str(value)
    return _safe(value if isinstance(value, str) else json.dumps(value))


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-") or "x"


def _literal(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    try:  # '1' would be read as a number, and needs its quotes
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return repr(value)


# --- what is remembered ---------------------------------------------------------------------------


class Record:
    """sweep.json: which points there are, under which names, and how they ended.

    Points are only ever added: a name once given stays, though sweep() may change.
    """

    def __init__(self, root: str, config: str):
        self.root, self.config = pathlib.Path(root), config
        self.points: list[Point] = []
        path = self.root / RECORD
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self.points = [Point(**point) for point in content["points"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path} was not written by launch.sweep ({error}).") from error

    def add(self, points: Iterable[Fields]) -> list[Point]:
        """The points of these fields, named if they are new; nothing is written yet."""
        known = {key_of(point.fields): point for point in self.points}
        found = []
        for fields in points:
            key = key_of(fields)
            if key not in known:
                fields = json.loads(key)
                known[key] = Point(name_of(len(self.points), fields), fields)
                self.points.append(known[key])
            found.append(known[key])
        return found

    def write(self) -> None:
        """Replaces sweep.json in one move.

        Raises:
          StorageError: the directory cannot be written.
        """
        from encoders.training.metrics import write_atomically  # jax, which --dry-run can spare

        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"--workdir {self.root} cannot be made here ({error.strerror}); its list of "
                f"runs is kept in it, so a shared directory has to be mounted on this machine, too."
            ) from error
        content = {"config": self.config, "points": [dataclasses.asdict(p) for p in self.points]}
        write_atomically(self.root / RECORD, json.dumps(content, indent=2).encode() + b"\n")

    def workdir(self, point: Point) -> str:
        """The directory of a run."""
        return str(self.root / point.name)
