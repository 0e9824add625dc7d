"""Several processes save one sharded state; any number of processes reads it back."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from running import environment

from encoders.checkpoints.store import CheckpointStore

HERE = pathlib.Path(__file__).parent


def run_peers(directory, count, mode):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    peers = [
        subprocess.Popen(
            [
                sys.executable,
                str(HERE / "peer.py"),
                str(directory),
                address,
                str(count),
                str(i),
                mode,
            ],
            env=environment(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]
    outputs = [peer.communicate(timeout=120)[0] for peer in peers]
    assert [peer.returncode for peer in peers] == [0] * count, "\n".join(outputs)
    return outputs


def test_two_processes_save_and_one_reads(tmp_path):
    run_peers(tmp_path, 2, "save")
    expected = np.arange(64.0, dtype=np.float32).reshape(16, 4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(8), ("a",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    shape = jax.ShapeDtypeStruct((16, 4), np.float32, sharding=sharding)
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [4, 5]
        for step in (4, 5):
            state = store.restore({"x": shape, "n": np.float32(0)}, step)
            np.testing.assert_array_equal(state["x"], expected * step)
            assert store.metadata(step) == {"step": step}

    # Each process checks half of the files; both must stop, whoever finds the damage.
    for path in (tmp_path / "5" / "arrays").rglob("*"):
        if path.is_file() and path.name == "_METADATA":
            path.write_bytes(path.read_bytes() + b" ")
    outputs = run_peers(tmp_path, 2, "damaged")
    assert all("step 5" in text and "the last good one is step 4" in text for text in outputs)
