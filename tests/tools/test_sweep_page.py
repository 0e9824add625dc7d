"""The page of a sweep: complete, legible, and in need of nothing else."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import sweeps
from launch.sweeping.results import Results, Row
from tools.report.charts import LETTER
from tools.report.sweep import BEST, axis_of, metric_against, page, parallel_coordinates

AXES = {
    "optimizer.lr": sweeps.log_uniform(1e-5, 1e-1),
    "optimizer.schedule.name": sweeps.choice("cosine", "linear", "<b>&'\""),
    "model.depth": sweeps.integer(2, 12),
}


def results_of(points, values, mode="min", **more):
    rows = [
        Row(f"{index:03d}-x", point, "failed" if value is None else "finished", value,
            message="no data in <x>" if value is None else "")
        for index, (point, value) in enumerate(zip(points, values, strict=True))
    ]  # fmt: skip
    return Results.of("Sweep of <c.py>", "eval/k&n/accuracy", mode, rows, **more)


@pytest.fixture
def results():
    points = sweeps.sample(AXES, 12)["points"]
    values = [None if i == 5 else 0.5 + 0.01 * i for i in range(12)]
    return results_of(points, values, "max", logarithmic={"optimizer.lr": True})


def svg(text):
    return ElementTree.fromstring(text)


def test_the_page_holds_everything_and_fetches_nothing(results):
    text = page(results)
    assert text.count("<svg") == 4  # all axes at once, and each of three
    assert not re.search(r"<script|https?://(?!www\.w3)|url\(|@import|<link|<img", text)
    assert "Sweep of &lt;c.py&gt;" in text
    assert "no data in &lt;x&gt;" in text
    assert "<b>" not in text
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        svg(drawn)  # well-formed


def test_the_best_run_stands_out_and_comes_first(results):
    text = page(results)
    assert results.best.name == "011-x"
    first = re.search(r'<tr class="best"><th>(.*?)</th>', text)[1]
    assert first == "011-x"
    lines = [e for e in svg(parallel_coordinates(results)) if e.tag == "path"]
    assert [line.get("stroke") == BEST for line in lines] == [False] * 11 + [True]  # on top
    dots = [e for e in svg(metric_against(results, "model.depth")) if e.tag == "circle"]
    assert [dot.get("fill") == BEST for dot in dots] == [False] * 10 + [True]
    colors = [dot.get("fill") for dot in dots[:-1]]
    reds = [int(color[1:3], 16) for color in colors]
    assert reds == sorted(reds, reverse=True)  # paler for the worse


def test_the_lower_the_deeper_where_less_is_better():
    results = results_of([{"a": i} for i in range(4)], [3.0, 0.0, 2.0, 1.0])
    dots = [e for e in svg(metric_against(results, "a")) if e.tag == "circle"]
    reds = {float(dot.get("cx")): dot.get("fill") for dot in dots}
    at_3, at_0, at_2, at_1 = (reds[x] for x in sorted(reds))
    assert at_0 == BEST
    assert int(at_1[1:3], 16) < int(at_2[1:3], 16) < int(at_3[1:3], 16)


def test_a_run_without_a_result_is_dashed_and_has_no_dot(results):
    lines = [e for e in svg(parallel_coordinates(results)) if e.tag == "path"]
    assert sum("stroke-dasharray" in line.attrib for line in lines) == 1
    assert len([e for e in svg(metric_against(results, "model.depth")) if e.tag == "circle"]) == 11


@pytest.mark.parametrize("values", [[], [None], [1.0], [None, 1.0]])
def test_with_fewer_than_two_results_there_is_a_table_and_no_picture(values):
    points = sweeps.sample(AXES, len(values))["points"]
    text = page(results_of(points, values))
    assert "<svg" not in text
    assert text.count("<th>0") == len(values) + values.count(None)


def test_equal_results_and_equal_settings_are_drawn():
    svg(parallel_coordinates(results_of([{"a": 1}, {"a": 1.0}], [2.0, 2.0])))
    svg(metric_against(results_of([{"a": 0}, {"a": 0}], [0.0, 0.0]), "a"))


def test_a_field_that_only_some_runs_set_is_drawn_for_those():
    results = results_of([{"a": 1}, {"a": 2}, {"a": 1, "b": 3}, {"a": 2, "b": 4}], [1, 2, 3, 4])
    assert metric_against(results, "b").count("<circle") == 2
    svg(parallel_coordinates(results))


@pytest.mark.parametrize(
    "values, log",
    [
        ((1e-4, 3e-4, 1e-3), True),
        ((1, 2, 4, 8), True),
        ((0.1, 0.2, 0.3, 0.4), False),
        ((0.5, 0.75, 0.9), False),
        ((0.0, 1e-3, 1e-1), False),
        ((1e-5, 1e-1), True),
        (tuple(range(1, 21)), False),
    ],
)
def test_the_scale_is_the_one_on_which_the_values_lie_evenly(values, log):
    assert axis_of("a", values).log is log
    if log:
        assert not axis_of("a", values, log=False).log


@settings(max_examples=200, deadline=None)
@example([0.0, 1.47e-123, 4.4e-254], None)
@example([8.5e205], None)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.integers(-1000, 1000), min_size=1, max_size=30),
    st.sampled_from([None, True, False]),
)
def test_every_value_lies_on_its_axis_and_no_two_ticks_overlap(values, log):
    axis = axis_of("a", values, log=log)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)
    places = [place for place, _ in axis.ticks]
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert 1 <= len(places) <= 13
    assert all((b - a) * 296 >= 13 for a, b in itertools.pairwise(places))  # lines of text


def test_ticks_of_a_narrow_range_can_be_told_apart():
    texts = [text for _, text in axis_of("a", [12.34561 + i * 1e-5 for i in range(9)]).ticks]
    assert len(set(texts)) == len(texts)


def test_texts_across_the_page_keep_clear_of_each_other():
    names = ("warmup_stable_decay", "cosine", "linear", "constant", "rsqrt")
    points = [{"optimizer.schedule.name": name} for name in names]
    picture = svg(metric_against(results_of(points, range(5)), "optimizer.schedule.name"))
    base = max(float(e.get("y")) for e in picture if e.tag == "text") - 19
    ticks = [e for e in picture if e.tag == "text" and abs(float(e.get("y")) - base) < 1]
    spans = sorted(
        (float(e.get("x")) - LETTER * len(e.text) / 2, float(e.get("x")) + LETTER * len(e.text) / 2)
        for e in ticks
    )
    assert len(spans) == 5
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert all(left >= 0 and right <= 540 for left, right in spans)
