"""The page of a report: HTML from runs, with everything it shows inside it."""

from __future__ import annotations

import base64
import datetime
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from encoders.training.progress import duration
from tools.report.charts import Bar, Line, bar_chart, count, line_chart, percent
from tools.report.markup import grid, safe, section, share, table, words
from tools.report.retrieval import (
    KIND,
    retrieval_charts,
    retrieval_sentence,
    retrieval_table,
)
from tools.report.runs import BASELINES, KINDS, Probe, Run, source_in_words

BASELINE_COLORS = {
    "pixels": "#8b98a9",
    "bag_of_words": "#8b98a9",
    "random": "#c3ccd6",
    "chance": "#9aa5b1",
    "unigram": "#8b98a9",
}
# metric -> (title, how values are shown, whether the axis begins at 0)
CURVES: dict[str, tuple[str, Callable[[float], str] | None, bool]] = {
    "train/loss": ("Loss", None, False),
    "train/accuracy": ("Training accuracy", percent, True),
    "train/lr": ("Learning rate", None, True),
    "train/grad_norm": ("Gradient norm", None, False),
    "train/update_norm": ("Update norm", None, True),
    "train/examples_per_second": ("Examples per second", None, True),
    "train/mfu": ("Model FLOPs utilisation", percent, True),
    "train/data_wait": ("Time spent waiting for data", percent, True),
}
STYLE = pathlib.Path(__file__).with_name("report.css")
NOT_CURVES = ("train/compile_seconds", "train/corrupt_examples")


def page(runs: Sequence[Run]) -> str:
    """The report of the first run; the others are laid over it."""
    run = runs[0]
    sections = [
        _header(run),
        _tiles(run),
        section("Evaluation", _evaluation(runs)),
        section("Reconstructions", _pictures(runs, retrieval=False)),
        section("Captions and the images they find", _pictures(runs, retrieval=True)),
        section("Training", _training(runs)),
        section("What ran", _what_ran(runs)),
        section("Configuration", _config(runs)),
    ]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(run.name)}</title>\n<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + f"\n<footer>Written {now} from {safe(run.directory)}.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


# --- head -----------------------------------------------------------------------------------------


def _header(run: Run) -> str:
    state = run.status.get("state", "unknown")
    model, objective = run.config.get("model", {}), run.config.get("objective", {})
    size = model.get("variant") or ""
    what = " · ".join(
        safe(word)
        for word in (
            f"{model.get('name', '')} {size}".strip(),
            objective.get("name", ""),
            _training_data(run),
            run.device,
        )
        if word
    )
    message = run.status.get("message")
    said = f'<p class="message">{safe(message)}</p>' if message else ""
    return (
        f'<header><h1>{safe(run.name)} <span class="state {safe(state)}">{safe(state)}</span>'
        f'</h1><p class="what">{what}</p>{said}</header>'
    )


def _training_data(run: Run) -> str:
    source = run.config.get("data", {}).get("source")
    return source_in_words(source) if source else ""


def _tiles(run: Run) -> str:
    tiles = []
    total = run.status.get("total_steps")
    tiles.append(("Steps", f"{run.step:,}", f"of {total:,}" if total else ""))
    if run.seconds is not None:
        tiles.append(("Duration", duration(run.seconds), "evaluation included"))
    loss = run.last("train/loss")
    if loss is not None:
        tiles.append(("Final loss", f"{loss:.4g}", "training, last window"))
    for probe in run.probes()[:2]:
        beside = ""
        if "random" in probe.values:
            gain = 100 * (probe.values["accuracy"] - probe.values["random"])
            beside = f"{gain:+.1f} points against random weights"
        tiles.append((_kind(run, probe.key), f"{100 * probe.values['accuracy']:.1f}%", beside))
    rate = run.typical("train/examples_per_second")
    if rate is not None:
        tiles.append(("Examples / s", f"{rate:,.0f}", _throughput(run)))
    shown = "".join(
        f'<div class="tile"><div class="name">{safe(name)}</div>'
        f'<div class="number">{safe(value)}</div><div class="beside">{safe(beside)}</div></div>'
        for name, value, beside in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _throughput(run: Run) -> str:
    mfu, wait = run.typical("train/mfu"), run.typical("train/data_wait")
    words = [f"MFU {100 * mfu:.1f}%"] if mfu is not None else []
    if wait is not None:
        words.append(f"data wait {100 * wait:.1f}%")
    return ", ".join(words)


# --- evaluation -----------------------------------------------------------------------------------


def _evaluation(runs: Sequence[Run]) -> str:
    run = runs[0]
    found = {(other.name, probe.key): probe for other in runs for probe in other.probes()}
    keys = list(dict.fromkeys(key for _, key in found))
    if not keys and not run.evaluators():
        return ""
    retrievals = [(r, key) for r in runs for key in r.evaluators() if r.kind(key) == KIND]
    said = [_sentence(run), _language(run)]
    said += [retrieval_sentence(other, key) for other, key in retrievals if other is run]
    parts = [f"<p>{text}</p>" for text in said if text]
    rows = {key: [(r, found[r.name, key]) for r in runs if (r.name, key) in found] for key in keys}
    several = len(runs) > 1
    bars = [_bars(pairs, named=several) for pairs in rows.values()]
    charts = [_accuracy_over_steps(pairs, named=several) for pairs in rows.values()]
    charts += [_loss_over_steps(runs, key) for key in run.evaluators()]
    for key in run.evaluators():
        if run.kind(key) == KIND:
            charts += [chart for other in runs for chart in retrieval_charts(other, key)]
        elif key not in keys:
            for metric in run.values(key):
                title = f"{_kind(run, key)}: {words(metric)}"
                charts.append(_curves(runs, f"eval/{key}/{metric}", title))
    parts += [grid(bars), grid(charts)]
    if keys:
        parts.append(_probe_table([pair for pairs in rows.values() for pair in pairs]))
    parts += [retrieval_table(other, key) for other, key in retrievals]
    parts.append(_other_metrics(runs))
    return "\n".join(parts)


def _sentence(run: Run) -> str:
    """The result in one sentence, where there are baselines to hold it against."""
    for probe in run.probes():
        versus = [
            f"<b>{100 * (probe.values['accuracy'] - probe.values[b]):+.1f} points</b> against "
            f"{text.lower()}{' of the same architecture' if b == 'random' else ''}"
            for b, text in BASELINES.items()
            if b in probe.values
        ]
        if versus:
            chance = run.chance(probe)
            return (
                f"{safe(_kind(run, probe.key))} at step {probe.step:,}: "
                f"<b>{100 * probe.values['accuracy']:.1f}%</b>, {' and '.join(versus)}, "
                f"all {safe(probe.data)}"
                + (f"; chance is {percent(chance)}." if chance is not None else ".")
            )
    return ""


def _language(run: Run) -> str:
    """What a model of words makes of held-out text, against counting them."""
    for key in run.evaluators():
        found = run.values(key)
        if {"loss", "unigram"} <= set(found):
            return (
                f"Hidden tokens of held-out text cost <b>{found['loss']:.2f} nats</b> each; "
                f"their frequencies alone cannot do better than {found['unigram']:.2f}, the "
                "unigram entropy."
            )
    return ""


def _loss_over_steps(runs: Sequence[Run], key: str) -> str:
    """Loss on held-out text, and the unigram entropy that it has to beat."""
    unigram = runs[0].values(key).get("unigram")
    if unigram is None:
        return ""
    lines, end = [], 1
    for run in runs:
        steps, values = run.curve(f"eval/{key}/loss")
        if steps:
            end = max(end, *steps)
            lines.append(Line(run.name, steps, values, run.color))
    if all(len(line.x) < 2 for line in lines):
        return ""
    level = [unigram, unigram]
    lines.append(Line("unigram entropy", [0, end], level, BASELINE_COLORS["unigram"], dashed=True))
    return line_chart(f"{_kind(runs[0], key)}: loss in nats", lines)


def _bars(rows: Sequence[tuple[Run, Probe]], *, named: bool) -> str:
    """Runs and baselines side by side; nothing where there is one number only."""
    run, probe = rows[0]
    bars = [
        Bar(other.name if named else "Pretrained", result.values["accuracy"], other.color)
        for other, result in rows
    ]
    bars += [
        Bar(text, probe.values[name], BASELINE_COLORS[name])
        for name, text in BASELINES.items()
        if name in probe.values
    ]
    if len(bars) == 1:
        return ""
    chance = run.chance(probe)
    reference = None if chance is None else ("chance", chance)
    note = f"test accuracy at step {probe.step:,}"
    return bar_chart(_kind(run, probe.key), bars, reference=reference, note=note)


def _accuracy_over_steps(rows: Sequence[tuple[Run, Probe]], *, named: bool) -> str:
    run, probe = rows[0]
    alone = "pretrained" if set(probe.values) & set(BASELINES) else "accuracy"
    lines, end = [], 1
    for other, result in rows:
        steps, values = other.curve(f"eval/{result.key}/accuracy")
        end = max(end, *steps)
        lines.append(Line(other.name if named else alone, steps, values, other.color))
    if all(len(line.x) < 2 for line in lines):
        return ""
    levels = {text.lower(): (probe.values.get(name), name) for name, text in BASELINES.items()}
    levels["chance"] = (run.chance(probe), "chance")
    for text, (value, name) in levels.items():
        if value is not None:
            lines.append(Line(text, [0, end], [value, value], BASELINE_COLORS[name], dashed=True))
    title = f"{_kind(run, probe.key)} over steps"
    return line_chart(title, lines, form=percent)


def _probe_table(rows: Sequence[tuple[Run, Probe]]) -> str:
    """Every probe of every run against its baselines; columns that say nothing are left out."""
    columns: dict[str, list[str]] = {
        "Evaluator": [_kind(run, probe.key) for run, probe in rows],
        "Run": [run.name for run, _ in rows],
        "Accuracy": [share(probe.values["accuracy"]) for _, probe in rows],
    }
    for name, text in BASELINES.items():
        columns[text] = [share(probe.values.get(name)) for _, probe in rows]
    columns["Over random"] = [
        f"{100 * (probe.values['accuracy'] - probe.values['random']):+.2f}"
        if "random" in probe.values
        else "–"
        for _, probe in rows
    ]
    columns["Chance"] = [share(run.chance(probe)) for run, probe in rows]
    columns["Step"] = [f"{probe.step:,}" for _, probe in rows]
    columns["Data"] = [probe.data for _, probe in rows]
    if len(set(columns["Run"])) == 1:
        del columns["Run"]
    below = ""
    if len(set(columns["Data"])) == 1:
        below = f'<p class="below">All {safe(columns.pop("Data")[0])}.</p>'
    columns = {name: cells for name, cells in columns.items() if set(cells) != {"–"}}
    body = list(zip(*columns.values(), strict=True))
    return table(list(columns), body) + below


def _other_metrics(runs: Sequence[Run]) -> str:
    known = {"accuracy", "chance", *BASELINES}
    rows = [
        [_kind(run, key), *([run.name] if len(runs) > 1 else []), words(metric), f"{value:.4g}"]
        for run in runs
        for key in run.evaluators()
        for metric, value in run.values(key).items()
        if metric not in known and run.kind(key) != KIND
    ]
    if not rows:
        return ""
    head = ["Evaluator", *(["Run"] if len(runs) > 1 else []), "Metric", "Last value"]
    summary = "<summary>All other metrics of the evaluators</summary>"
    return f"<details>{summary}{table(head, rows)}</details>"


# --- pictures -------------------------------------------------------------------------------------


def _pictures(runs: Sequence[Run], *, retrieval: bool) -> str:
    parts = []
    for run in runs:
        for label, files in run.pictures().items():
            if (run.kind(label) == KIND) != retrieval:
                continue
            rows = () if retrieval else ("original", "masked", "prediction")
            title = _kind(run, label) + (f", {run.name}" if len(runs) > 1 else "")
            parts.append(_figure(title, rows, *files[-1]))
            # A few of the earlier ones, evenly spread, so that a long run's page stays small.
            earlier = files[:-1]
            earlier = earlier[:: max(1, -(-len(earlier) // 4))]
            if earlier:
                shown = "".join(_figure(title, rows, *file) for file in earlier)
                parts.append(f"<details><summary>Earlier</summary>{shown}</details>")
    return "\n".join(parts)


def _figure(title: str, rows: Sequence[str], step: int | None, path: Any) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode()
    when = "" if step is None else f", step {step:,}"
    named = "".join(f"<span>{safe(row)}</span>" for row in rows)
    return (
        f'<figure><div class="rows">{named}</div><img alt="{safe(title)}" '
        f'src="data:image/png;base64,{encoded}">'
        f"<figcaption>{safe(title)}{when}</figcaption></figure>"
    )


# --- training -------------------------------------------------------------------------------------


def _training(runs: Sequence[Run]) -> str:
    names = [name for name in CURVES if any(name in run.metrics() for run in runs)]
    names += [
        name
        for name in runs[0].metrics()
        if name.startswith("train/") and name not in (*CURVES, *NOT_CURVES)
    ]
    charts = []
    for name in names:
        title, form, from_zero = CURVES.get(name, (words(name.removeprefix("train/")), None, False))
        charts.append(_curves(runs, name, title, form, from_zero))
    return grid(charts)


def _curves(
    runs: Sequence[Run],
    metric: str,
    title: str,
    form: Callable[[float], str] | None = None,
    from_zero: bool = False,
) -> str:
    lines = []
    for run in runs:
        steps, values = run.curve(metric)
        if steps:
            lines.append(Line(run.name, steps, values, run.color))
    return line_chart(title, lines, form=form, from_zero=from_zero)


# --- facts and config -----------------------------------------------------------------------------


def _what_ran(runs: Sequence[Run]) -> str:
    columns = [dict(_facts(run)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = ["", *(run.name for run in runs)]
    body = [[name, *(column.get(name, "–") for column in columns)] for name in names]
    return table(head if len(runs) > 1 else [], body, kind="facts")


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    if run.sessions:
        last = run.sessions[-1]
        started = datetime.datetime.fromtimestamp(run.sessions[0]["started"], datetime.UTC)
        yield "Command", last["command"]
        yield "Started", started.strftime("%Y-%m-%d %H:%M UTC")
        resumed = [f"{session['first_step']:,}" for session in run.sessions[1:]]
        if resumed:
            yield "Resumed at step", ", ".join(resumed)
        yield "Versions", ", ".join(f"{k} {v}" for k, v in last["versions"].items())
        yield "Device", run.device
    if run.seconds is not None:
        yield "Duration", duration(run.seconds)
    compiled = run.last("train/compile_seconds")
    if compiled is not None:
        yield "Compilation", f"{compiled:.1f} s"
    facts, rate = run.facts, run.typical("train/examples_per_second")
    if "parameters" in facts:
        yield "Parameters", f"{facts['parameters']:,}"
    if "compute_dtype" in facts:
        yield "Compute dtype", facts["compute_dtype"]
    if "batch_size" in facts:
        yield "Batch size", f"{facts['batch_size']:,}"
    if "examples_per_epoch" in facts:
        seen = run.step * facts.get("batch_size", 0)
        epochs = seen / facts["examples_per_epoch"]
        yield "Examples seen", f"{seen:,} ({epochs:.4g} epochs of {facts['examples_per_epoch']:,})"
    flops = facts.get("flops_per_example")
    if flops:
        yield "FLOPs per example", f"{count(flops, ' ')}FLOPs (forward and backward)"
    if rate is not None:
        yield "Examples per second", f"{rate:,.0f} (median)"
        if flops:
            yield "Achieved", f"{count(flops * rate, ' ')}FLOP/s"
    mfu = run.typical("train/mfu")
    unknown = "– (no data-sheet peak is known for this device)"
    yield "MFU", unknown if mfu is None else f"{100 * mfu:.1f}% (median)"
    wait = run.typical("train/data_wait")
    if wait is not None:
        yield "Data wait", f"{100 * wait:.1f}% of training time (median)"
    corrupt = run.last("train/corrupt_examples")
    if corrupt is not None:
        yield "Corrupt examples", f"{corrupt:,.0f} replaced" if corrupt else "none"


def _config(runs: Sequence[Run]) -> str:
    run = runs[0]
    plain = {k: v for k, v in run.config.items() if not isinstance(v, Mapping)}
    first = ("model", "objective", "data", "preprocessing", "optimizer")
    groups = {"run": plain, **{name: run.config[name] for name in first if name in run.config}}
    groups |= {k: v for k, v in run.config.items() if isinstance(v, Mapping) and v}
    cards = []
    for name, fields in groups.items():
        rows = "".join(
            f"<tr><td>{safe(key)}</td><td>{safe(value)}</td></tr>" for key, value in _flat(fields)
        )
        cards.append(f'<div class="card"><h3>{safe(name)}</h3><table>{rows}</table></div>')
    different = _differences(runs)
    return different + f'<div class="cards">{"".join(cards)}</div>'


def _differences(runs: Sequence[Run]) -> str:
    """A table of the fields in which the runs differ."""
    flat = [dict(_flat(run.config)) for run in runs]
    names = list(dict.fromkeys(name for fields in flat for name in fields))
    rows = [
        [name, *(fields.get(name, "–") for fields in flat)]
        for name in names
        if len({fields.get(name) for fields in flat}) > 1
    ]
    if not rows:
        return ""
    head = ["Differs in", *(run.name for run in runs)]
    return table(head, rows, kind="facts")


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        joined = [(f"{prefix}.{key}" if prefix else str(key), value[key]) for key in value]
        return [pair for path, item in joined for pair in _flat(item, path)]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [pair for i, item in enumerate(value) for pair in _flat(item, f"{prefix}[{i}]")]
    return [(prefix, value if isinstance(value, str) else json.dumps(value))]


def _kind(run: Run, key: str) -> str:
    """'Linear probe', and the evaluator's own name where that says more."""
    kind = run.kind(key)
    name = KINDS.get(kind, words(kind))
    return name if key == kind else f"{name} ({key})"
