"""Two processes with two devices each train and evaluate as one process with one device does."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import peer
import pytest
from running import environment

HERE = pathlib.Path(__file__).parent
MESHES = [
    dict(tensor=4),  # both processes hold all rows
    dict(dcn=2, fsdp=2),  # each holds half of them
]


def run_peers(meshes, count=2, devices=2):
    """What each process printed, a dict per mesh."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    peers = [
        subprocess.Popen(
            [
                *(sys.executable, str(HERE / "peer.py"), address, str(count), str(index)),
                *map(json.dumps, meshes),
            ],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [peer.communicate(timeout=180) for peer in peers]
    assert [peer.returncode for peer in peers] == [0] * count, "\n".join(o[1] for o in outputs)
    # Gloo writes to stdout as well.
    lines = [[line for line in out.splitlines() if line.startswith("{")] for out, _ in outputs]
    return [list(map(json.loads, found)) for found in lines]


def test_two_processes_give_the_step_and_scores_of_one():
    expected = peer.measure(dict(data=1), jax.devices()[:1])
    assert expected["loss"] > 0
    for found in run_peers(MESHES):
        assert len(found) == len(MESHES)
        for metrics in found:
            assert metrics == pytest.approx(expected, rel=1e-4)
