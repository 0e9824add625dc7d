"""Processes that cannot start together say why, within a deadline."""

import re
import socket
import time

import pytest
from running import SHORT, environment, finish, launch, train_here, wait_for_step

from encoders.errors import ConfigError, DataError, StartupError, StorageError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def workers(workdir, *arguments, count=2, start=None, each=lambda index: {}):
    """Exit codes and outputs of `count` plain workers, of which only `start` are started."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        launch(
            workdir,
            *("--cluster", "plain", "--coordinator", address),
            *("--processes", count, "--process", index),
            *arguments,
            module="launch.worker",
            **each(index),
        )
        for index in range(start or count)
    ]
    return zip(*map(finish, started), strict=True)


def message(output):
    [line] = re.findall(r"^error: (.*)$", output, re.MULTILINE)
    return line


@pytest.mark.parametrize(
    "address, problem",
    [
        ("no-such-host.invalid:1234", r"host 'no-such-host.invalid' does not resolve"),
        ("127.0.0.1:9", r"nothing answers at 127.0.0.1:9 \(Connection refused\)"),
        ("127.0.0.1", r"expected HOST:PORT, got '127.0.0.1'"),
    ],
)
def test_a_coordinator_that_is_not_there_is_named_within_the_deadline(address, problem, tmp_path):
    began = time.monotonic()
    place = ("--cluster", "plain", "--coordinator", address, "--processes", 2, "--process", 1)
    process = launch(tmp_path, *place, "--startup-seconds", 3, module="launch.worker")
    code, output = finish(process)
    assert code == StartupError.exit_code, output
    assert re.search(problem, message(output))
    assert time.monotonic() - began < 60


def test_a_peer_that_never_starts_is_missed_within_the_deadline(tmp_path):
    (codes, outputs) = workers(tmp_path, "--startup-seconds", 4, start=1)
    assert codes == (StartupError.exit_code,), outputs[0]
    assert "the other processes of 2 did not come within the start-up deadline" in message(
        outputs[0]
    )


def test_another_number_of_devices_than_expected_stops_every_process(tmp_path):
    (codes, outputs) = workers(tmp_path, "--expect-devices", 8)
    assert codes == (StartupError.exit_code,) * 2, outputs
    for output in outputs:
        expected = (
            r"expected 8 devices in all, but 2 processes see 2 \(cpu\); most likely jax found no"
        )
        assert re.search(expected, message(output))


def test_a_node_that_lacks_devices_is_named(tmp_path):
    (codes, outputs) = workers(
        tmp_path, "--expect-devices", 4, each=lambda i: {"env": environment(2 - i)}
    )
    assert codes == (StartupError.exit_code,) * 2, outputs
    assert "process 1 sees only 1, others 2" in message(outputs[0])


def test_a_mesh_that_does_not_divide_the_devices_stops_every_process(tmp_path):
    (codes, outputs) = workers(tmp_path, "--config.hardware={'mesh': {'data': 3}}")
    assert codes == (ConfigError.exit_code,) * 2, outputs
    assert all("hardware.mesh" in message(output) for output in outputs)


def test_a_directory_that_not_all_nodes_share_stops_every_process(tmp_path):
    (tmp_path / "n0").mkdir()
    (tmp_path / "n1").mkdir()
    (codes, outputs) = workers("run", each=lambda i: {"cwd": tmp_path / f"n{i}"})
    assert codes == (ConfigError.exit_code,) * 2, outputs
    for output in outputs:
        assert re.search(r"--workdir run on \S+ is not the directory that process 0", output)


def test_data_that_one_node_lacks_stops_every_process(tmp_path):
    source = "--config.data.source={'name': 'folder', 'path': 'pictures'}"
    for index in range(2):
        (tmp_path / f"n{index}").mkdir()
    (tmp_path / "n0" / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "n0" / "pictures" / "a" / "0.png").write_bytes(b"not opened")
    (codes, outputs) = workers(
        tmp_path / "run",
        source,
        "--config.data.transforms=()",
        each=lambda i: {"cwd": tmp_path / f"n{i}"},
    )
    assert codes == (DataError.exit_code,) * 2, outputs
    assert re.search(r"process 1 on \S+: .*pictures", message(outputs[0]))
    assert "pictures" in message(outputs[1])


def test_a_second_run_in_one_directory_is_refused(tmp_path):
    options = (*SHORT, "--config.duration.steps=100000")
    first = launch(tmp_path, *options)
    wait_for_step(1, tmp_path, first)
    who = re.escape(f"process {first.pid} on {socket.gethostname()}")
    with pytest.raises(ConfigError, match=rf"is in use by another run \({who}\)"):
        train_here(tmp_path, *options)
    assert first.poll() is None
    first.terminate()
    finish(first)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    problem = r"--workdir \S+/file/run cannot be written on \S+ \(Not a directory"
    with pytest.raises(StorageError, match=problem):
        train_here(tmp_path / "file" / "run")
