import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from encoders.data import Pipeline
from encoders.data.sources.sample import Sample
from encoders.data.sources.synthetic import Synthetic
from encoders.data.transforms.geometry import RandomFlip, RandomResizedCrop
from encoders.errors import DataError

TRANSFORMS = [RandomResizedCrop(image_size=(8, 8)), RandomFlip()]


@dataclasses.dataclass(frozen=True)
class Witness:
    """Says what its process has imported, and which one it is."""

    def __call__(self, example, rng):
        heavy = [name for name in ("jax", "flax", "tensorflow", "torch") if name in sys.modules]
        return {"heavy": len(heavy), "pid": os.getpid(), **example}


@dataclasses.dataclass(frozen=True)
class Misbehave:
    """Dies, hangs or fails at one label; harmless where it is built."""

    how: str
    home: int

    def __call__(self, example, rng):
        if os.getpid() != self.home and example["label"] == 7:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "bug":
                raise ZeroDivisionError("a bug in a transform")
            if self.how == "fatal":
                raise DataError("the disk is gone.")
        return example


@pytest.fixture
def children():
    """Lists the processes that this test has started and that still live."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


def test_processes_make_the_same_batches_without_jax(children):
    import jax  # so that a worker which copied this process would have it

    source = Sample(split="test")
    transforms = [*TRANSFORMS, Witness()]
    reference = Pipeline(source, transforms, 32, seed=3)
    batches = list(Pipeline(source, transforms, 32, seed=3, processes=2).iterate(60, 67))
    assert len(batches) == 7
    workers = set()
    for step, batch in zip(range(60, 67), batches, strict=True):
        expected = reference.batch(step)
        for name in ("image", "label", "row"):
            assert batch[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(batch[name], expected[name])
        assert not batch["heavy"].any()
        workers |= set(batch["pid"].tolist())
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert jax.__name__ in sys.modules
    assert not children()


def test_corrupt_examples_are_reported_from_the_workers(tmp_path):
    from encoders.data.sources.folder import Folder
    from encoders.data.transforms.geometry import Decode

    for number in range(6):
        (tmp_path / f"{number}.ppm").write_bytes(b"P6 2 2 255 " + bytes([number] * 12))
    (tmp_path / "4.ppm").write_bytes(b"P6")
    pipeline = Pipeline(Folder(path=str(tmp_path)), [Decode()], 6, 0, processes=2)
    batches = list(pipeline.iterate(0, 4))
    assert pipeline.stats.corrupt >= 4
    assert list(pipeline.stats.names) == [str(tmp_path / "4.ppm")]
    assert all(4 not in batch["image"] for batch in batches)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "killed",
            r"worker \d died while making the batch of step \d+ \(signal 9\).*out of memory",
        ),
        ("bug", r"worker \d died while making the batch of step \d+ \(exit code 1\).*stands above"),
        ("fatal", "the disk is gone"),
    ],
)
def test_a_worker_that_fails_ends_the_run_with_a_reason(children, how, message, capfd):
    source = Synthetic(image_size=(4, 4), num_examples=100)
    pipeline = Pipeline(source, [Misbehave(how, os.getpid())], 4, 0, shuffle=False, processes=2)
    with pytest.raises(DataError, match=message):
        list(pipeline.iterate(0, 10))
    assert not children()
    if how == "bug":
        assert "ZeroDivisionError: a bug in a transform" in capfd.readouterr().err


def test_steps_before_the_failure_arrive():
    source = Synthetic(image_size=(4, 4), num_examples=100)
    pipeline = Pipeline(source, [Misbehave("bug", os.getpid())], 4, 0, shuffle=False, processes=2)
    batches = pipeline.iterate(0, 10)
    assert next(batches)["label"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="step 1"):
        next(batches)


def test_stopping_early_leaves_no_process(children):
    batches = Pipeline(Synthetic(image_size=(8, 8)), TRANSFORMS, 8, 0, processes=3).iterate()
    next(batches)
    assert len(children()) == 3
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 10
    assert not children()


def test_workers_run_ahead_but_not_far(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Unpicklable:
        def __call__(self, example, rng):
            return example

    with pytest.raises(DataError, match="cannot be sent to a worker"):
        next(Pipeline(Synthetic(), [Unpicklable()], 8, 0, processes=1).iterate())
    source = Synthetic(image_size=(4, 4), num_examples=1000)
    log = tmp_path / "steps"
    batches = Pipeline(source, [Note(str(log))], 4, 0, shuffle=False, processes=2).iterate()
    next(batches)
    deadline = time.monotonic() + 20
    while len(log.read_text().split()) < 5 * 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    made = len(log.read_text().split())
    batches.close()
    # One batch was taken; each of two workers may hold two more, and one was asked for after
    # taking.
    assert made == 5 * 4


@dataclasses.dataclass(frozen=True)
class Note:
    """Appends a line for every example it sees, in worker processes only."""

    path: str
    home: int = dataclasses.field(default_factory=os.getpid)

    def __call__(self, example, rng):
        if os.getpid() != self.home:
            with open(self.path, "a") as file:
                file.write("x\n")
        return example


def test_workers_leave_when_their_parent_is_killed():
    program = (
        "import os, sys\n"
        "from encoders.data import Pipeline, SOURCES\n"
        "batches = Pipeline(SOURCES['synthetic'](image_size=(4, 4)), [], 4, 0, "
        "processes=2).iterate()\n"
        "next(batches)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).resolve().parents[2],
    )
    assert parent.stdout.readline() == b"ready\n"
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    # A signal to the group is the parent's business.
    for worker in workers:
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert all(worker.is_running() for worker in workers)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert len(gone) == 2
    parent.stdin.close()
    parent.stdout.close()


def test_a_pipeline_may_be_pickled_after_use():
    pipeline = Pipeline(Synthetic(image_size=(4, 4)), TRANSFORMS, 4, 0)
    expected = pipeline.batch(1)
    batcher = pickle.loads(pickle.dumps(pipeline.batcher))
    out = batcher.empty()
    assert batcher.fill(1, out) == []
    np.testing.assert_array_equal(out["image"], expected["image"])
