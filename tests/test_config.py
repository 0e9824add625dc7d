"""Strict building: what a signature does not say is refused, with the nearest name."""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import ml_collections
import pytest

from encoders import config as configs
from encoders.config import Durations, apply_override, bind, build, check, load_config
from encoders.errors import ConfigError, EncodersError, exit_cleanly, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Widget(Base):
    size: int
    shape: tuple[int, int] = (1, 1)
    kind: Literal["round", "square"] = "round"
    labels: Sequence[str] = ()
    limit: float | None = None
    pairs: tuple[tuple[str, Any], ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inner: Base | None = None
    on: bool = False


class Network(nn.Module):
    width: int
    rates: tuple[float, ...] = (0.0,)
    encoder: nn.Module | None = None


def plain(size: int, context: str, *, factor: float = 1.0) -> tuple:
    return size, context, factor


TABLE = {"widget": Widget, "network": Network, "plain": plain}


def make(section, **context):
    return build(TABLE, section, "model", **context)


# --- building -----------------------------------------------------------------------------------


def test_builds_by_signature_from_dicts_and_config_dicts():
    section = {
        "name": "widget",
        "size": 3,
        "rate": 1,
        "shape": [2, 3],
        "labels": ["a", "b"],
        "limit": 2,
        "pairs": [["x", [1, 2]]],
        "extra": {"deep": {"list": [1]}},
        "inner": {"rate": 2},
    }
    for given in (section, ml_collections.ConfigDict(section)):
        built = make(given)
        assert built == Widget(
            size=3,
            rate=1.0,
            shape=(2, 3),
            labels=("a", "b"),
            limit=2.0,
            pairs=(("x", (1, 2)),),
            extra={"deep": {"list": (1,)}},
            inner=Base(rate=2.0),
        )
        assert type(built.rate) is float
        assert type(built.extra["deep"]) is dict


def test_context_is_passed_where_it_fits_and_is_no_field():
    assert make({"name": "plain", "size": 2, "factor": 3}, context="c", other=1) == (2, "c", 3.0)
    with pytest.raises(ConfigError, match=r"model.context: unknown field"):
        make({"name": "plain", "size": 2, "context": "x"}, context="c")


def test_linen_modules_build_without_their_own_fields():
    encoder = Network(width=2)
    built = make({"name": "network", "width": 4, "rates": [0, 1]}, encoder=encoder)
    assert built.width == 4
    assert built.rates == (0.0, 1.0)
    assert built.encoder == encoder
    assert built.name is None
    with pytest.raises(ConfigError, match=r"model.parent: unknown field"):
        make({"name": "network", "width": 4, "parent": None})


def test_bind_checks_now_and_builds_later():
    made = []

    def late(size: int) -> None:
        made.append(size)

    call = bind({"late": late}, {"name": "late", "size": 1}, "x")
    assert made == []
    call()
    assert made == [1]
    with pytest.raises(ConfigError, match=r"x.sise: unknown field. Did you mean 'size'"):
        bind({"late": late}, {"name": "late", "sise": 1}, "x")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "model.name is missing. Known: network, plain, widget."),
        ({"name": "wigdet"}, "model.name: unknown name 'wigdet'. Did you mean 'widget'?"),
        ({"name": "zzz"}, "unknown name 'zzz'. Known: network, plain, widget."),
        (3, "model: expected a section with a 'name', got 3."),
        ({"name": "widget"}, "model.size is missing; it has no default."),
        ({"name": "widget", "size": 1, "shap": (1, 1)}, "unknown field. Did you mean 'shape'?"),
        ({"name": "widget", "size": 1.5}, "model.size: expected int, got 1.5."),
        ({"name": "widget", "size": True}, "model.size: expected int, got True."),
        ({"name": "widget", "size": "1"}, "model.size: expected int, got '1'."),
        ({"name": "widget", "size": None}, "model.size: expected int, got None."),
        ({"name": "widget", "size": 1, "rate": True}, "model.rate: expected float, got True."),
        ({"name": "widget", "size": 1, "on": 1}, "model.on: expected bool, got 1."),
        ({"name": "widget", "size": 1, "shape": (1,)}, "model.shape: expected tuple[int, int]"),
        (
            {"name": "widget", "size": 1, "shape": (1, "2")},
            "model.shape[1]: expected int, got '2'.",
        ),
        ({"name": "widget", "size": 1, "labels": "abc"}, "model.labels: expected Sequence[str]"),
        ({"name": "widget", "size": 1, "kind": "squar"}, "Did you mean 'square'?"),
        (
            {"name": "widget", "size": 1, "limit": "x"},
            "model.limit: expected float | None, got 'x'.",
        ),
        (
            {"name": "widget", "size": 1, "pairs": (("x",),)},
            "model.pairs[0]: expected tuple[str, Any]",
        ),
        (
            {"name": "widget", "size": 1, "extra": 1},
            "model.extra: expected Mapping[str, Any], got 1.",
        ),
        ({"name": "widget", "size": 1, "inner": {"rat": 1}}, "model.inner.rat: unknown field."),
        ({"name": "widget", "size": 1, "inner": {"rate": "x"}}, "model.inner.rate: expected float"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make(section)
    if isinstance(section, dict):
        with pytest.raises(ConfigError, match=re.escape(message)):
            make(ml_collections.ConfigDict(section))


FIELDS = sorted(f.name for f in dataclasses.fields(Widget))


@hypothesis.given(field=st.sampled_from([f for f in FIELDS if len(f) > 3]), data=st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_single_slip_of_a_field_names_that_field(field, data):
    at = data.draw(st.integers(1, len(field) - 1))
    slip = data.draw(st.sampled_from(["drop", "double", "swap"]))
    typed = {
        "drop": field[:at] + field[at + 1 :],
        "double": field[:at] + field[at] + field[at:],
        "swap": field[: at - 1] + field[at] + field[at - 1] + field[at + 1 :],
    }[slip]
    hypothesis.assume(typed not in FIELDS)
    with pytest.raises(ConfigError, match=re.escape(f"model.{typed}: unknown field.")) as caught:
        make({"name": "widget", "size": 1, typed: 1})
    assert f"'{field}'" in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = [int, float, bool, str, int | None, float | str, tuple[int, ...], tuple[str, float],
         Sequence[float], Mapping[str, Any], Literal["a", 1], Any, None]  # fmt: skip


def has_type(value, expected):
    """An independent reading of the annotations above."""
    if expected is Any:
        return True
    if expected is None:
        return value is None
    if expected == int | None:
        return value is None or type(value) is int
    if expected == float | str:
        return type(value) in (float, str)
    if expected == tuple[int, ...]:
        return isinstance(value, tuple) and all(type(x) is int for x in value)
    if expected == tuple[str, float]:
        return isinstance(value, tuple) and [type(x) for x in value] == [str, float]
    if expected == Sequence[float]:
        return isinstance(value, tuple) and all(type(x) is float for x in value)
    if expected == Mapping[str, Any]:
        return type(value) is dict
    if expected == Literal["a", 1]:
        return value in ("a", 1)
    return type(value) is expected


@hypothesis.given(value=VALUES, expected=st.sampled_from(TYPES))
@hypothesis.settings(max_examples=500, deadline=None)
def test_check_returns_the_type_asked_for_or_refuses(value, expected):
    try:
        checked = check(value, expected, "x")
    except ConfigError:
        assert not has_type(value, expected)
    else:
        assert has_type(checked, expected)


# --- files and overrides ------------------------------------------------------------------------

FILE = """
import ml_collections

def get_config(arg=None):
    if arg not in (None, "big"):
        raise ValueError(f"no variant '{arg}'")
    config = ml_collections.ConfigDict()
    config.size = 2 if arg is None else 20
    config.optimizer = dict(lr=0.1, clip=None, betas=(0.9, 0.99), variant="18")
    config.data = dict(transforms=(dict(name="crop", scale=(0.2, 1.0)), dict(name="flip")))
    return config
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(FILE)
    return path


def test_configs_come_from_files_with_arguments_and_overrides(path):
    config = load_config(
        f"{path}:big",
        ["optimizer.lr=1", "optimizer.clip=2.5", "optimizer.betas=[0.8, 0.9]", "size=3",
         "data.transforms.0.scale=(0.5, 1)", "optimizer.new=text", "optimizer.variant=50",
         "ema=.9"],
    )  # fmt: skip
    assert config.size == 3
    assert config.optimizer.lr == 1.0
    assert type(config.optimizer.lr) is float
    assert config.optimizer.clip == 2.5
    assert config.optimizer.betas == (0.8, 0.9)
    assert (config.optimizer.new, config.ema) == ("text", 0.9)  # checked when they are built
    assert config.optimizer.variant == "50"
    assert configs.to_plain(config)["data"]["transforms"][0]["scale"] == (0.5, 1)
    assert load_config(str(path)).size == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "--config.optimiser: unknown field. Did you mean 'optimizer'?"),
        ("sise=1", "--config.sise: unknown field. Did you mean 'size'?"),
        ("size", "--config.size: expected --config.size=VALUE."),
        ("size=1.5", "--config.size: expected int, got 1.5."),
        ("size=big", "--config.size: expected int, got 'big'."),
        ("optimizer.lr=high", "--config.optimizer.lr: expected float, got 'high'."),
        ("optimizer.lr.x=1", "--config.optimizer.lr: is 0.1, not a section."),
        ("optimizer=3", "--config.optimizer: expected"),
        ("data.transforms.5.x=1", "--config.data.transforms.5: unknown field."),
        ("data.transforms.0=1", "items of a tuple cannot be set; set 'transforms'."),
    ],
)
def test_wrong_overrides_are_named(path, override, message):
    config = load_config(str(path))
    with pytest.raises(ConfigError, match=re.escape(message)):
        apply_override(config, override)


def test_wrong_files_are_named(path, tmp_path):
    with pytest.raises(ConfigError, match=r"no file '.*tinny.py'. Did you mean '.*tiny.py'"):
        load_config(str(tmp_path / "tinny.py"))
    with pytest.raises(ConfigError, match=r"no file 'nowhere/x.py'"):
        load_config("nowhere/x.py")
    with pytest.raises(ConfigError, match="no variant 'huge'"):
        load_config(f"{path}:huge")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="defines no get_config"):
        load_config(str(tmp_path / "empty.py"))
    for name, text, message in [
        ("bare", "def get_config(): return 3", "get_config.. of '.*bare.py' returns int"),
        ("torn", "x = 1\ndef get_config(", r"torn.py' line 2 is no Python"),
        ("apart", "import nowhere_to_be_found", r"apart.py' cannot be imported .No module"),
    ]:
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(str(tmp_path / f"{name}.py"))
    with pytest.raises(ConfigError, match=r"get_config.. of '.*bare.py' takes no argument"):
        load_config(str(tmp_path / "bare.py:big"))
    (tmp_path / "broken.json").write_text('{"size": 1')
    with pytest.raises(ConfigError, match=r"broken.json' is not valid JSON"):
        load_config(str(tmp_path / "broken.json"))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list.json' holds list, not a config"):
        load_config(str(tmp_path / "list.json"))


def test_a_config_file_that_was_changed_within_a_second_is_read_anew(path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    at = path.stat().st_mtime
    assert load_config(str(path)).size == 2
    path.write_text(FILE.replace("size = 2 if", "size = 3 if"))
    os.utime(path, (at, at))
    assert load_config(str(path)).size == 3


def test_a_config_file_may_import_its_neighbours_and_leaves_no_trace(tmp_path):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "shared.py").write_text("SIZE = 7\n")
    (folder / "main.py").write_text(
        "import ml_collections\nfrom somewhere import shared\n"
        "def get_config(arg=None):\n    return ml_collections.ConfigDict({'size': shared.SIZE})\n"
    )
    before = list(sys.path)
    assert load_config(str(folder / "main.py")).size == 7
    assert sys.path == before


@hypothesis.given(st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=4))
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_json_round_trip(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(values))
    assert configs.to_plain(load_config(str(path))) == configs.to_plain(values)
    assert configs.to_json(load_config(str(path))) == configs.to_json(values)


# --- durations ----------------------------------------------------------------------------------


@hypothesis.given(
    batch=st.integers(1, 10_000), epoch=st.integers(1, 10**7), total=st.integers(1, 10**6)
)
def test_all_units_agree(batch, epoch, total):
    durations = Durations(batch, epoch, total)
    assert durations.steps({"steps": total}, "x") == total
    assert durations.steps({"percent": 100}, "x") == total
    assert durations.steps({"examples": total * batch}, "x") == total
    for epochs in (0.5, 1, 90):
        steps = durations.steps({"epochs": epochs}, "x")
        assert steps == durations.steps({"examples": epochs * epoch}, "x")
        assert abs(steps * batch - epochs * epoch) <= batch / 2 + 1e-6 * epoch


def test_imagenet_for_90_epochs():
    assert Durations(1024, 1_281_167).steps({"epochs": 90}, "x") == 112_603
    assert Durations(1, 1, 7).steps({"steps": 2.6}, "x") == 3


@pytest.mark.parametrize(
    ("duration", "message"),
    [
        (90, "x: expected one of ('steps', 'epochs', 'examples', 'percent')"),
        ({}, "x: expected one of"),
        ({"steps": 1, "epochs": 2}, "x: expected one of"),
        ({"epoch": 1}, "x: unknown unit 'epoch'. Did you mean 'epochs'?"),
        ({"steps": -1}, "x.steps: expected a number from 0, got -1."),
        ({"steps": "1"}, "x.steps: expected a number from 0, got '1'."),
        ({"steps": True}, "x.steps: expected a number from 0, got True."),
        ({"epochs": math.nan}, "x.epochs: expected a number from 0, got nan."),
        ({"epochs": math.inf}, "x.epochs: expected a number from 0, got inf."),
        ({"epochs": 1}, "x: epochs need data.examples_per_epoch"),
        ({"percent": 1}, "x: percent of what?"),
    ],
)
def test_wrong_durations_are_named(duration, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Durations(batch_size=8).steps(duration, "x")


# --- errors -------------------------------------------------------------------------------------


def test_errors_end_a_command_with_one_line_and_their_code(capsys):
    def fail():
        raise ConfigError("lr: wrong.")

    with pytest.raises(SystemExit) as caught:
        exit_cleanly(fail)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: lr: wrong.\n"
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(lambda: None)
    assert caught.value.code == 0
    with pytest.raises(ZeroDivisionError):  # bugs keep their traceback
        exit_cleanly(lambda: 1 / 0)
    codes = [kind.exit_code for kind in EncodersError.__subclasses__()]
    assert len(set(codes)) == len(codes)


def test_nearest_lists_all_if_none_is_close():
    assert nearest("xyz", ["b", "a"]) == " Known: a, b."
    assert nearest("xyz", []) == ""


def test_nearest_lists_few_of_many():
    text = nearest("xyz", [f"choice{number}" for number in range(300)])
    assert text.startswith(" Some of the 300 known: choice")
    assert text.count(",") == 9


def test_json_is_stable():
    assert configs.to_json({"b": (1, 2), "a": {"d": 1, "c": None}}) == json.dumps(
        {"a": {"c": None, "d": 1}, "b": [1, 2]}, indent=2
    )
