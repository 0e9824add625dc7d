"""From ConfigDict to objects, strictly.

A section names its class in a table (`name`) and every other field is a parameter of that class:
the signature is the schema. Unknown, missing and mistyped fields are errors that name the nearest
valid field, and because nothing but signatures reads a config, a field that nothing reads cannot
exist. A parameter whose type is a base of the table's classes takes a section of its own, with a
`name` in the same table: a model made of models.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.machinery
import importlib.util
import inspect
import json
import math
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from encoders.errors import ConfigError, closest, nearest

_IGNORED = ("self", "parent", "name")  # Linen adds the last two to every module


def build(table: Mapping[str, Callable], section: Any, where: str, **context: Any) -> Any:
    """Builds the object that `section['name']` picks from `table`: `bind`, then call.

    Raises:
      ConfigError: unknown name; unknown, missing or mistyped field.
    """
    return bind(table, section, where, **context)()


def bind(
    table: Mapping[str, Callable], section: Any, where: str, **context: Any
) -> Callable[[], Any]:
    """Checks a section wholly, and returns a call that builds its object later.

    So that a misspelt field of an evaluator is found before training starts, not after an hour.

    Args:
      table: name -> class or function; its signature is the schema of the section.
      section: mapping with `name` and the fields to pass.
      where: the section's path in the config ('optimizer.schedule'), named in errors.
      **context: objects that the surroundings supply; passed where the signature has the parameter.

    Raises:
      ConfigError: unknown name; unknown, missing or mistyped field.
    """
    if not _is_mapping(section):
        raise ConfigError(f"{where}: expected a section with a 'name', got {section!r}.")
    fields = dict(section)
    name = fields.pop("name", None)
    if name is None:
        raise ConfigError(f"{where}.name is missing.{nearest('', table)}")
    if name not in table:
        raise ConfigError(f"{where}.name: unknown name '{name}'.{nearest(name, table)}")
    found = _arguments(table[name], fields, where, table, **context)
    return functools.partial(table[name], **found)


def construct(target: Callable, fields: Any, where: str, **context: Any) -> Any:
    """Calls `target` with the fields of a section, checked against its signature and hints."""
    return target(**arguments(target, fields, where, **context))


def arguments(target: Callable, fields: Any, where: str, **context: Any) -> dict[str, Any]:
    """The keyword arguments for `target`: the checked fields of a section, and fitting context.

    Raises:
      ConfigError: unknown, missing or mistyped field.
    """
    return _arguments(target, fields, where, None, **context)


def _arguments(
    target: Callable, fields: Any, where: str, table: Mapping[str, Callable] | None, **context: Any
) -> dict[str, Any]:
    parameters = inspect.signature(target).parameters
    hints = _hints(target)
    schema = {n: p for n, p in parameters.items() if n not in _IGNORED and n not in context}
    found = {n: value for n, value in context.items() if n in parameters}
    for field, value in dict(fields).items():
        if field not in schema:
            raise ConfigError(f"{where}.{field}: unknown field.{nearest(field, schema)}")
        found[field] = check(value, hints.get(field, Any), f"{where}.{field}", table)
    for field, parameter in schema.items():
        if field not in found and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{where}.{field} is missing; it has no default.")
    return found


def _hints(target: Callable) -> dict[str, Any]:
    # A dataclass writes its own __init__, whose annotations belong to the modules of its bases.
    if inspect.isclass(target) and not dataclasses.is_dataclass(target):
        target = target.__init__
    return typing.get_type_hints(target)


def check(
    value: Any,
    expected: Any,
    where: str,
    table: Mapping[str, Callable] = types.MappingProxyType({}),
) -> Any:
    """Checks a config value against a type annotation; returns it as that type.

    ints pass for floats, lists for tuples, and mappings for dataclasses (built recursively) and for
    what a base of the classes of `table` is expected for (`build`).

    Raises:
      ConfigError: the value has another type.
    """
    mismatch = ConfigError(f"{where}: expected {_spell(expected)}, got {value!r}.")
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected in (Any, inspect.Parameter.empty) or isinstance(expected, typing.TypeVar):
        return _plain(value)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return check(value, option, where, table)
            except ConfigError as error:
                # The error inside a nested section says more than "expected A or B".
                nested = dataclasses.is_dataclass(option) or _is_base(option, table)
                if nested and _is_mapping(value):
                    raise error from None
        raise mismatch
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: unknown value {value!r}.{nearest(value, arguments)}")
        return value
    if expected is None or expected is type(None):
        if value is not None:
            raise mismatch
        return None
    kind = origin or expected
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool):
        raise mismatch
    if kind in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            raise mismatch
        if not arguments:
            return tuple(_plain(item) for item in value)
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        if variadic or kind in (Sequence, list):
            return tuple(check(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(arguments) != len(value):
            raise mismatch
        pairs = enumerate(zip(value, arguments, strict=True))
        return tuple(check(v, argument, f"{where}[{i}]") for i, (v, argument) in pairs)
    if kind in (dict, Mapping):
        if not _is_mapping(value):
            raise mismatch
        return _plain(value)
    if _is_base(kind, table) and _is_mapping(value):
        return build(table, value, where)
    if dataclasses.is_dataclass(kind) and _is_mapping(value):
        return construct(kind, value, where)
    if inspect.isclass(kind) and not isinstance(value, kind):
        raise mismatch
    return value


def _is_base(kind: Any, table: Mapping[str, Callable] | None) -> bool:
    """Whether a type is one that the classes of a table are derived from, with no fields itself."""
    if not inspect.isclass(kind) or kind is object or dataclasses.is_dataclass(kind):
        return False
    classes = [entry for entry in (table or {}).values() if inspect.isclass(entry)]
    return any(issubclass(entry, kind) and entry is not kind for entry in classes)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | ml_collections.ConfigDict)


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts and lists to tuples, all the way down."""
    if _is_mapping(value):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def _spell(expected: Any) -> str:
    if inspect.isclass(expected) and not typing.get_origin(expected):
        return {"NoneType": "None"}.get(expected.__name__, expected.__name__)
    return str(expected).replace("typing.", "").replace("collections.abc.", "")


# --- files, overrides, JSON ---------------------------------------------------------------------


def load_config(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Loads 'path/to/config.py' or 'path/to/config.py:argument' and applies overrides.

    Args:
      spec: a Python file with `get_config(arg=None)`, or the config.json of a run.
      overrides: 'optimizer.lr=1e-4' strings; values are Python literals, anything else is a string.

    Raises:
      ConfigError: no such file, no `get_config`, unknown field, or wrong type.
    """
    name, _, argument = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--config: no file '{name}'.{nearest(name, near) if near else ''}")
    if path.suffix == ".json":
        config = ml_collections.ConfigDict(_read_json(path))
    else:
        get_config = getattr(import_file(path), "get_config", None)
        if get_config is None:
            raise ConfigError(f"--config: '{name}' defines no get_config(arg=None).")
        if argument and not inspect.signature(get_config).parameters:
            raise ConfigError(f"--config {spec}: get_config() of '{name}' takes no argument.")
        try:
            config = get_config(argument) if argument else get_config()
        except ValueError as error:
            raise ConfigError(f"--config {spec}: {error}.") from error
        if not _is_mapping(config):
            found = type(config).__name__
            raise ConfigError(f"--config: get_config() of '{name}' returns {found}, no ConfigDict.")
    for override in overrides:
        apply_override(config, override)
    return config


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--config: '{path}' is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config: '{path}' holds {type(content).__name__}, not a config.")
    return content


class _AsWritten(importlib.machinery.SourceFileLoader):
    """Compiles a file each time. What Python keeps of one that it compiled would be taken for that
    of a file that was changed within the same second and has as many letters."""

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(path: pathlib.Path) -> types.ModuleType:
    """The module of a config file, which may import its neighbours as configs.*.

    Raises:
      ConfigError: it is no Python, or imports what is not there.
    """
    # So that they are found wherever the command was started.
    name = f"config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, loader=_AsWritten(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    root = str(path.resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(
            f"--config: '{error.filename}' line {error.lineno} is no Python ({error.msg})."
        ) from error
    except ImportError as error:
        raise ConfigError(f"--config: '{path}' cannot be imported ({error}).") from error
    finally:
        sys.path.remove(root)
    return module


def apply_override(config: ml_collections.ConfigDict, override: str) -> None:
    """Sets one field, 'a.b.c=value', keeping its type; a field that is not there is an error.

    Fields that a section's class has, but this config does not set, are added as they are and
    checked when the section is built; at the top level unless they look like one that is set.

    Raises:
      ConfigError: no such field, or its value is of another type.
    """
    path, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--config.{override}: expected --config.{override}=VALUE.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *parents, leaf = path.split(".")
    node: Any = config
    for depth, key in enumerate(parents):
        here = ".".join(parents[: depth + 1])
        if isinstance(node, list | tuple) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif _is_mapping(node) and key in node:
            node = node[key]
        else:
            choices = list(node) if _is_mapping(node) else []
            raise ConfigError(f"--config.{here}: unknown field.{nearest(key, choices)}")
        if not _is_mapping(node) and not isinstance(node, list | tuple):
            raise ConfigError(f"--config.{here}: is {node!r}, not a section.")
    if not parents and leaf not in config and (near := closest(leaf, config)):
        raise ConfigError(f"--config.{leaf}: unknown field. Did you mean '{near}'?")
    if not _is_mapping(node):
        raise ConfigError(f"--config.{path}: items of a tuple cannot be set; set '{parents[-1]}'.")
    old = node.get(leaf, None)
    if isinstance(old, str) and isinstance(value, int | float) and not isinstance(value, bool):
        value = text  # a name that reads as a number, such as model.variant=50
    if old is not None and value is not None:
        value = _as_type_of(old, value, f"--config.{path}")
    if isinstance(node, ml_collections.ConfigDict):
        with node.unlocked(), node.ignore_type():
            node[leaf] = value
    else:
        node[leaf] = value


def _as_type_of(old: Any, value: Any, where: str) -> Any:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    if _is_mapping(old) and isinstance(value, dict):
        return value
    if type(old) is not type(value):
        raise ConfigError(f"{where}: expected {type(old).__name__}, got {value!r}.")
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts and tuples of JSON types."""
    return _plain(config)


def to_json(config: Any) -> str:
    """A config as stable, indented JSON."""
    return json.dumps(_plain(config), indent=2, sort_keys=True)


# --- durations ------------------------------------------------------------------------------------

UNITS = ("steps", "epochs", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Durations:
    """Resolves {'epochs': 90} and its like to steps, in one place.

    Attributes:
      batch_size: examples per step.
      examples_per_epoch: examples in one pass, or None if the data set does not say.
      total_steps: length of the whole run, for 'percent'; None while it is itself being resolved.
    """

    batch_size: int
    examples_per_epoch: int | None = None
    total_steps: int | None = None

    def steps(self, duration: Any, where: str) -> int:
        """Steps of {'steps' | 'epochs' | 'examples' | 'percent': number}, rounded to the nearest.

        Raises:
          ConfigError: not exactly one unit, an unknown unit, a negative number, unknown epochs.
        """
        if not _is_mapping(duration) or len(duration) != 1:
            raise ConfigError(
                f"{where}: expected one of {UNITS}, like {{'epochs': 90}}, got {duration!r}."
            )
        [(unit, number)] = dict(duration).items()
        if unit not in UNITS:
            raise ConfigError(f"{where}: unknown unit '{unit}'.{nearest(unit, UNITS)}")
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not 0 <= number < math.inf
        ):
            raise ConfigError(f"{where}.{unit}: expected a number from 0, got {number!r}.")
        if unit == "steps":
            return round(number)
        if unit == "examples":
            return round(number / self.batch_size)
        if unit == "percent":
            if self.total_steps is None:
                raise ConfigError(
                    f"{where}: percent of what? The run's own length needs another unit."
                )
            return round(self.total_steps * number / 100)
        if self.examples_per_epoch is None:
            raise ConfigError(
                f"{where}: epochs need data.examples_per_epoch, which this data does not say."
            )
        return round(number * self.examples_per_epoch / self.batch_size)
