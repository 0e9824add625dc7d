"""What a run leaves behind survives kills, resumes and full disks."""

import errno
import io
import json
import os
import threading

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from encoders.errors import StorageError
from encoders.training.metrics import (
    MetricWriter,
    read_facts,
    read_metrics,
    read_status,
    write_facts,
    write_status,
)
from encoders.training.progress import Progress, duration


def steps(directory):
    return [record["step"] for record in read_metrics(directory)]


@pytest.fixture
def written(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"train/loss": 1 / step})
        writer.write(30, {"eval/knn/accuracy": 0.5})
    return tmp_path


def test_records_come_back(tmp_path):
    with MetricWriter(tmp_path / "new", tensorboard=False) as writer:
        writer.write(np.int32(3), {"a": np.float32(0.25), "b": np.array([7]), "c": float("nan")})
        [record] = read_metrics(tmp_path / "new")  # visible at once, not only after close
    assert record.pop("time") > 1e9
    assert record == {"step": 3, "a": 0.25, "b": 7, "c": None}
    assert read_metrics(tmp_path / "nothing") == []


@pytest.mark.parametrize("torn", ['{"step": 40, "tr', '{"step": 40, "train/loss": 0.1}', "{"])
def test_a_torn_last_line_is_cut_off(written, torn):
    with (written / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert steps(written) == [10, 20, 30, 30]  # a reader of a live run is not disturbed
    with MetricWriter(written, tensorboard=False) as writer:
        writer.write(40, {"train/loss": 2.0})
    assert steps(written) == [10, 20, 30, 30, 40]
    assert read_metrics(written)[-1]["train/loss"] == 2.0


def test_resuming_forgets_what_will_be_written_again(written):
    with MetricWriter(written, tensorboard=False) as writer:
        writer.truncate(20)
        assert steps(written) == [10, 20]
        writer.write(30, {"train/loss": 5.0})
        writer.truncate(30)
        writer.write(40, {"train/loss": 6.0})
    assert steps(written) == [10, 20, 30, 40]
    with MetricWriter(written, tensorboard=False) as writer:
        writer.truncate(0)
    assert steps(written) == []


def test_tensorboard_gets_the_same_numbers_and_hides_repeated_steps(written):
    with MetricWriter(written) as writer:
        writer.truncate(20)
        writer.write(30, {"train/loss": 0.5, "train/bad": float("inf")})
    [path] = (written / "tensorboard").iterdir()
    events, data = [], path.read_bytes()
    while data:  # TFRecord: length, its checksum, content, its checksum
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(30, "train/loss", 0.5)]
    assert [e.step for e in events if e.session_log.status] == [21]


def test_a_full_disk_is_a_clear_error_and_loses_no_earlier_line(written, monkeypatch):
    writer = MetricWriter(written, tensorboard=False)
    write = os.write

    def full(file, data):
        if len(data) > 4:
            return write(file, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"metrics\.jsonl: No space left"):
            writer.write(40, {"train/loss": 1.0})
    writer.close()
    MetricWriter(written, tensorboard=False).close()
    assert steps(written) == [10, 20, 30, 30]
    with pytest.raises(StorageError, match=r"File exists\.$"):
        MetricWriter(written / "metrics.jsonl")


def test_status_is_replaced_whole(tmp_path):
    assert read_status(tmp_path) is None
    write_status(tmp_path, "running", 5, 20, {"train/loss": np.float32(0.5)})
    torn, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                torn.append(read_status(tmp_path)["total_steps"] != 20)
            except ValueError:
                torn.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(300):
        write_status(tmp_path, "running", step, 20, {"train/loss": step})
    stop.set()
    reader.join()
    assert torn
    assert not any(torn)

    write_status(tmp_path, "failed", message="disk full")
    status = read_status(tmp_path)
    assert status.pop("time") > 1e9
    assert status == {
        "state": "failed", "step": 299, "total_steps": 20, "message": "disk full",
        "metrics": {"train/loss": 299},
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_facts_keep_every_session(tmp_path):
    write_facts(tmp_path, first_step=0, parameters=10)
    write_facts(tmp_path, first_step=7, parameters=10, batch_size=4)
    facts = read_facts(tmp_path)
    assert (facts["parameters"], facts["batch_size"]) == (10, 4)
    assert [session["first_step"] for session in facts["sessions"]] == [0, 7]
    assert facts["sessions"][0]["devices"]["count"] == 8
    assert facts["sessions"][0]["versions"]["jax"]
    assert facts["sessions"][0]["command"].startswith("python ")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    with MetricWriter(tmp_path / "run") as writer, Progress(9, stream=stream) as progress:
        writer.truncate(0)
        writer.write(1, {"train/loss": 1.0})
        write_status(tmp_path, "running", 1, 9)
        write_facts(tmp_path, first_step=0)
        progress.update(1, {"train/loss": 1.0})
        progress.note("text")
    assert not list(tmp_path.iterdir())
    assert not stream.getvalue()
    write_status(tmp_path, "failed", message="out of memory")
    assert read_status(tmp_path)["message"] == "out of memory"


# --- progress -----------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_are_rare_and_complete():
    stream, clock = io.StringIO(), Clock()
    metrics = {
        "train/loss": 0.43215,
        "train/examples_per_second": 1234.5,
        "train/mfu": 0.431,
        "train/data_wait": 0.003,
        "train/lr": 0.1,
    }
    with Progress(100, stream=stream, seconds=10, clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step)
            clock.now += 1
            if step % 5 == 0:
                progress.update(step, metrics)
        progress.note("step 100: knn: accuracy 0.9")
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "step 5/100 (5%)  loss 0.4321  1,234 examples/s  MFU 43.1%  data wait 0.3%  ETA 1:59"
    )
    assert [line.split()[1] for line in lines[:3]] == ["5/100", "15/100", "25/100"]
    assert lines[-2].startswith("step 100/100 (100%)")
    assert lines[-1] == "step 100: knn: accuracy 0.9"
    assert len(lines) == 12


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(40, 30, stream=stream) as progress:
        progress.update(31, {"train/loss": 0.5})
        progress.update(32, {"train/data_wait": None})
        progress.note("[not markup]")
    shown = stream.getvalue()
    assert "32/40" in shown
    assert "loss 0.5" in shown
    assert "[not markup]" in shown


@pytest.mark.parametrize(
    "seconds, text",
    [(4.6, "0:05"), (727, "12:07"), (11045, "3:04:05"), (2 * 86400 + 11045, "2 d 03:04")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_are_json_that_any_reader_takes(written):
    for line in (written / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
