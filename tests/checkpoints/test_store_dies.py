"""A process that dies, or a disk that fills, in the middle of a save costs that save alone."""

import multiprocessing
import time

import numpy as np
import pytest
import saver

from encoders.checkpoints.store import CheckpointStore


@pytest.fixture(scope="module")
def processes():
    """Starts processes from a server that has done the imports, in a tenth of the time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["saver"])
    return context


def assert_whole(store, step):
    found = store.restore(saver.state_at(step), step)
    for name, array in saver.state_at(step)["params"].items():
        assert array.tobytes() == found["params"][name].tobytes()
    assert found["step"] == store.metadata(step)["step"] == step


def test_ten_kills_in_a_row_lose_no_finished_checkpoint(processes, tmp_path):
    directory, progress = tmp_path / "checkpoints", tmp_path / "progress"
    progress.touch()
    rng = np.random.default_rng(0)
    interrupted = 0
    with CheckpointStore(directory) as reader:
        for _ in range(10):
            lines = len(progress.read_text().splitlines())
            process = processes.Process(
                target=saver.save_for_ever, args=(directory, progress), daemon=True
            )
            process.start()
            deadline = time.monotonic() + 60
            while len(progress.read_text().splitlines()) < lines + 2:
                assert process.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.join()

            finished = int(progress.read_text().splitlines()[-1])
            steps = reader.steps()
            latest = reader.latest() or 0
            assert finished <= latest <= finished + 1
            for step in steps:
                assert_whole(reader, step)
            left = {int(path.name) for path in directory.iterdir()} - set(steps)
            assert left <= {latest + 1, *range(finished)}
            interrupted += latest + 1 in left
    assert interrupted >= 2  # or the test was too slow to hit a save


def test_a_full_disk_is_one_sentence_and_older_checkpoints_stay(processes, tmp_path):
    messages = processes.Queue()
    process = processes.Process(target=saver.fill_the_disk, args=(tmp_path, messages))
    process.start()
    message, steps, names = (messages.get(timeout=60) for _ in range(3))
    process.join()
    assert process.exitcode == 0
    assert message == (
        f"checkpoint of step 2 could not be written to {tmp_path} (File too large); step 1 is "
        "intact; free space or choose another directory, then start again."
    )
    assert steps == [1]
    assert names == ["1"]  # the space that step 2 took was given back
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [1, 3]
        for step in store.steps():
            assert_whole(store, step)
