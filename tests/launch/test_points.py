"""Points of a sweep: names that never change, overrides that say what they mean."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from encoders.config import apply_override
from encoders.errors import ConfigError, StorageError
from launch.sweeping.points import (
    NAME_LENGTH,
    Point,
    Record,
    key_of,
    name_of,
    overrides_of,
    read_plan,
)

FIELDS = st.from_regex(r"[a-z][a-z0-9_]{0,12}(\.[a-z][a-z0-9_]{0,12}){0,2}", fullmatch=True)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab", min_size=1), inner, max_size=2)
    ),
    max_leaves=5,
)
POINTS = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=5)


def test_a_name_says_what_is_special_about_the_run():
    fields = {"optimizer.weight_decay": 0.05, "optimizer.lr": 1e-3}
    assert name_of(3, fields) == "003-lr=0.001-wd=0.05"
    assert name_of(1234, {"optimizer.lr": -2.5e-7}) == "1234-lr=-2.5e-07"
    assert name_of(0, {"optimizer.b1": 0.9, "optimizer.b2": 0.95}) == "000-b1=0.9-b2=0.95"
    assert name_of(0, {"duration": {"epochs": 90}}) == "000-duration=epochs-90"
    assert name_of(0, {"model.width": 1, "objective.decoder.width": 2}) == (
        "000-model.width=1-objective.decoder.width=2"
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=6), st.randoms())
def test_names_are_safe_short_unique_and_know_no_order(points, random):
    names = [name_of(index, point) for index, point in enumerate(points)]
    assert len({name.lower() for name in names}) == len(names)
    for index, (name, point) in enumerate(zip(names, points, strict=True)):
        assert re.fullmatch(r"[A-Za-z0-9._+=-]+", name)
        assert len(name) <= NAME_LENGTH
        items = list(point.items())
        random.shuffle(items)
        assert name_of(index, dict(items)) == name


@settings(max_examples=60, deadline=None)
@given(POINTS)
@example({"a": "1", "b": "None", "c": "[1]", "d": "'x'", "e": " 1", "f": ""})
def test_an_override_is_read_as_the_value_it_was_made_from(fields):
    fields = {field.replace(".", "_"): value for field, value in fields.items()}
    for override in overrides_of(fields):
        field = override.partition("=")[0]
        config = ConfigDict({field: None})
        apply_override(config, override)
        assert key_of({field: config[field]}) == key_of({field: fields[field]})


def test_a_name_once_given_stays_though_the_sweep_changes(tmp_path):
    record = Record(str(tmp_path), "c.py")
    before = [p.name for p in record.add([{"a": 1}, {"a": 2}])]
    record.write()
    again = Record(str(tmp_path), "c.py")
    found = again.add([{"a": 0}, {"a": 2}, {"a": 1}, {"a": 0}])
    assert [p.name for p in found] == ["002-a=0", before[1], before[0], "002-a=0"]
    assert len(again.points) == 3


def test_what_happened_to_a_point_is_remembered(tmp_path):
    record = Record(str(tmp_path), "c.py")
    (point,) = record.add([{"a": [1, {"b": None}]}])
    point.job, point.code = "17_0", -9
    record.write()
    assert Record(str(tmp_path), "c.py").points == [
        Point("000-a=1-b-null", {"a": [1, {"b": None}]}, "17_0", -9)
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"points": [{"nam": 1}]}', "{}"])
def test_a_sweep_json_that_is_not_ours_is_not_written_over(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match="was not written by launch"):
        Record(str(tmp_path), "c.py")


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    record = Record(str(tmp_path / "file/w"), "c.py")
    with pytest.raises(StorageError, match="has to be mounted on this machine"):
        record.write()


def plan_of(tmp_path, body):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=None):\n    return ConfigDict(dict(lr=0.1, arg=arg))\n" + body
    )
    return read_plan(f"{path}:x")


def test_a_list_of_points_is_a_sweep_and_a_point_that_is_there_twice_is_one_run(tmp_path):
    plan = plan_of(tmp_path, "def sweep():\n    return [dict(lr=1), dict(lr=2), dict(lr=1)]\n")
    assert [dict(p) for p in plan.points] == [{"lr": 1}, {"lr": 2}]


@pytest.mark.parametrize(
    "body, message",
    [
        ("", "defines no sweep"),
        ("def sweep():\n    return 3\n", "sweep"),
        ("def sweep():\n    return []\n", "no point"),
        ("def sweep():\n    return [dict()]\n", "point 0 sets no field"),
        ("def sweep():\n    return [dict(lr=float('nan'))]\n", "cannot be written as JSON"),
        ("def sweep():\n    return [dict(lr=object())]\n", "cannot be written as JSON"),
        ("def sweep():\n    return dict(points=[dict(lr=1)], metrics='x')\n", "Did you mean"),
        ("def sweep():\n    return dict(points=[dict(lr=1)], mode='least')\n", "mode"),
        ("def sweep():\n    return dict(trials=3)\n", "needs axes"),
        ("def sweep():\n    raise ValueError('an axis is empty')\n", "an axis is empty"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_sentence(tmp_path, body, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan_of(tmp_path, body)
    assert "\n" not in str(caught.value)


def test_a_sweep_over_a_stored_config_has_no_points(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"lr": 1}))
    with pytest.raises(ConfigError, match="defines no sweep"):
        read_plan(str(path))
