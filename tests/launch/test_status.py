"""What launch.status says of runs that run, end, die, or are no runs at all."""

import io
import json
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from encoders.errors import ConfigError
from launch import status
from launch.runs import find_runs, read_run

NOW = 1_000_000.0
DEVICES = {"kind": "NVIDIA H200", "platform": "gpu", "count": 8, "processes": 2, "host": "x"}


def write(
    directory, state="running", *, step=50, total=200, time=NOW, records=(), sessions=1, **more
):
    directory.mkdir(parents=True, exist_ok=True)
    content = dict(state=state, step=step, total_steps=total, time=time, message="", metrics={})
    (directory / "status.json").write_text(json.dumps(content | more))
    started = [dict(started=NOW - 1000 + 100 * i, devices=DEVICES) for i in range(sessions)]
    (directory / "run.json").write_text(json.dumps({"sessions": started}))
    lines = [json.dumps(record) + "\n" for record in records]
    (directory / "metrics.jsonl").write_text("".join(lines))
    return directory


def steps(*pairs, **more):
    return [{"step": s, "time": t, "train/loss": 1 / s, **more} for s, t in pairs]


def shown(root, capsys, *flags):
    assert status.main(["--workdir", str(root), *flags]) == 0
    return capsys.readouterr().out


def test_runs_are_found_at_any_depth_and_nothing_inside_a_run(tmp_path):
    for name in ("b", "a/deep/er", "a/x"):
        write(tmp_path / name)
    write(tmp_path / "b/checkpoints/10")
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["a/deep/er", "a/x", "b"]
    assert list(find_runs(tmp_path / "b")) == [tmp_path / "b"]


def test_the_table_says_how_each_run_is_doing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)
    use = {
        "train/mfu": 0.412, "train/goodput": 0.95, "train/data_wait": 0.013,
        "train/examples_per_second": 12345.6, "train/loss": 2.5,
    }  # fmt: skip
    records = steps((10, NOW - 400), (50, NOW - 200))
    records += [{"step": 50, "time": NOW - 150, "eval/knn/loss": 3.0, "eval/knn/accuracy": 0.5}]
    write(tmp_path / "one", records=records, metrics=use, sessions=3, time=NOW - 200)
    write(tmp_path / "two", "failed", message="step 7: loss nan", step=None, total=None)
    write(tmp_path / "three", time=NOW - 13 * 60)
    write(tmp_path / "four", "finished", step=200, time=NOW - 1e6)
    write(tmp_path / "five", "stopped")
    lines = {line.split()[0]: line for line in shown(tmp_path, capsys).splitlines() if line}
    for text in ("running", "50/200  25%", "12 min", "12,346", "41.2%", "95.0%", "1.3%", "2.5"):
        assert text in lines["one"]
    assert "knn accuracy 0.5 " in lines["one"]
    assert " 2  8 × NVIDIA H200, 2 processes" in lines["one"]
    assert "failed" in lines["two"]
    assert lines["two:"] == "two: step 7: loss nan"
    assert "silent for 13 min (no heartbeat)" in lines["three"]
    assert re.search(r"finished +200/200 100%", lines["four"])
    assert "stopped" in lines["five"]
    assert lines["5"] == "5 runs: 1 failed, 1 finished, 1 running, 1 silent, 1 stopped."


def test_a_narrow_terminal_loses_columns_and_never_the_names(tmp_path, monkeypatch):
    use = {"train/mfu": 0.412, "train/goodput": 0.95, "train/examples_per_second": 12345.6}
    write(tmp_path / "003-optimizer.lr=0.001-wd=0.05", metrics=use)
    (run,) = (read_run(path, now=NOW) for path in find_runs(tmp_path))

    def drawn(width):
        console = Console(width=width, file=io.StringIO())
        console.print(status.table([run], tmp_path, NOW, console))
        return console.file.getvalue()

    assert "8 × NVIDIA H200" in drawn(200)
    narrow = drawn(80)
    assert "003-optimizer.lr=0.001-wd=0.05  running" in narrow
    assert "41.2%" in narrow
    assert "…" not in narrow
    assert "H200" not in narrow


def test_json_has_plain_units_and_no_nan(tmp_path, capsys):
    write(tmp_path / "a", metrics={"train/loss": None, "train/mfu": 0.5}, sessions=2)
    (tmp_path / "a/metrics.jsonl").write_text('{"step": 1, "time": 1, "train/x": NaN}\n')
    (run,) = json.loads(shown(tmp_path, capsys, "--json"))
    assert run["run"] == "a"
    assert (run["state"], run["step"], run["total_steps"]) == ("silent", 50, 200)
    assert run["restarts"] == 1
    assert run["devices"]["count"] == 8
    assert run["metrics"] == {"train/x": None, "train/loss": None, "train/mfu": 0.5}


def test_the_pace_is_that_of_this_session(tmp_path):
    records = steps((10, NOW - 5000), (20, NOW - 2000), (30, NOW - 800), (50, NOW - 700))
    run = read_run(write(tmp_path, records=records, sessions=2), now=NOW)
    assert run.seconds_left == pytest.approx(150 * 100 / 20)  # 20 steps in 100 s since the restart


def test_a_run_with_long_pauses_is_not_called_silent_for_one_of_them(tmp_path):
    records = steps((10, NOW - 3000), (20, NOW - 2000), (30, NOW - 1000))
    assert read_run(write(tmp_path, records=records, time=NOW - 1000), now=NOW).state == "running"
    assert read_run(write(tmp_path, records=records, time=NOW - 4000), now=NOW).state == "silent"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\xff\xfe", '{"state": "up"}', '{"state": "running"}',
     '{"state": "running", "time": "now"}', '{"state": ["running"], "time": 1}'],
)  # fmt: skip
def test_a_file_that_is_half_written_or_foreign_hides_no_other_run(tmp_path, capsys, text):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/status.json").write_bytes(text.encode("latin-1"))
    write(tmp_path / "good")
    out = shown(tmp_path, capsys)
    assert "good" in out
    assert "bad" not in out


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", '{"sessions": 3}', '{"sessions": [1, {"devices": 7}]}', '"x"\n{}\n']
)
def test_what_is_beside_the_status_may_be_anything(tmp_path, capsys, name, text):
    (write(tmp_path / "a") / name).write_text(text)
    assert "a" in shown(tmp_path, capsys)
    (run,) = json.loads(shown(tmp_path, capsys, "--json"))
    assert run["step"] == 50


def test_a_directory_without_runs_is_no_mistake_and_one_that_is_not_there_is(tmp_path, capsys):
    assert "no run has started yet" in shown(tmp_path, capsys)
    assert json.loads(shown(tmp_path, capsys, "--json")) == []
    with pytest.raises(ConfigError, match="no such directory"):
        status.main(["--workdir", str(tmp_path / "x")])


def test_looking_needs_no_jax():
    code = "import sys, launch.status; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
