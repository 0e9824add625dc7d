"""The processes of a run: how they find each other, what they agree on, how they part.

jax.distributed does the work: its coordinator keeps the list of processes and a small key-value
store, and its preemption service makes all of them stop at one step. With one process everything
here is a no-op that returns at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name yet
from jax.experimental import multihost_utils

from encoders.errors import DeadlineError, EncodersError, StartupError

log = logging.getLogger(__name__)

T = TypeVar("T")
CLUSTERS = ("slurm", "openmpi", "tpu", "gke", "plain")
STARTUP_SECONDS = 300.0
_FOREVER = 1e6
_counter = itertools.count()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among its peers.

    Attributes:
      coordinator: 'host:port' of process 0, or None where jax finds it by itself (Cloud TPU).
      count, index: number of processes, and which of them this one is.
      local_devices: numbers of the local accelerators that it takes; None means all it sees.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] | None = None


# --- finding each other ---------------------------------------------------------------------------


@contextlib.contextmanager
def joined(
    cluster: str,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    expect_devices: int | None = None,
    seconds: float = STARTUP_SECONDS,
) -> Iterator[None]:
    """Joins the other processes of the run, and leaves them again.

    An error of this process alone ends it at once, with its message and exit code: to leave in
    order means to wait for peers that may be waiting for this one. Their launcher stops them.

    Args:
      cluster: one of CLUSTERS.
      coordinator, processes, process: of a plain cluster; elsewhere they override what is found.
      expect_devices: how many devices all processes together must see; None accepts any.
      seconds: deadline for all of this.

    Raises:
      StartupError: the coordinator does not resolve or answer, a peer is missing, or the devices
        are not as many as expected.
    """
    # A SIGTERM before jax has its own handler is remembered, and passed on to it.
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: early.append(number))
    try:
        began = time.monotonic()
        place = find_place(
            cluster, os.environ, coordinator=coordinator, processes=processes, process=process
        )
        _connect(place, began + seconds)
        if early:
            time.sleep(0.5)  # the handler is installed by a thread of its own
            os.kill(os.getpid(), signal.SIGTERM)
        _check_devices(expect_devices)
        log.info(
            "process %d of %d on %s, pid %d: %d of %d devices, joined in %.1f s",
            jax.process_index(), jax.process_count(), socket.gethostname(), os.getpid(),
            jax.local_device_count(), jax.device_count(), time.monotonic() - began,
        )  # fmt: skip
        yield
    except BaseException as error:
        if not getattr(error, "agreed", False) and connected():
            _exit_alone(error)
        _leave()
        raise
    _leave()


def find_place(
    cluster: str,
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Place:
    """What the scheduler's environment variables say of this process.

    Raises:
      StartupError: a variable is missing, so that the process was not started by that scheduler.
    """

    def read(name: str) -> str:
        if name not in environment:
            raise StartupError(
                f"--cluster {cluster}: {name} is not set, so this process was not started by "
                f"{_STARTERS[cluster]}."
            )
        return environment[name]

    if cluster == "slurm":
        found = _slurm(read, environment)
    elif cluster == "openmpi":
        found = _openmpi(read, environment, coordinator)
    elif cluster == "tpu" or (cluster == "gke" and "TPU_WORKER_ID" in environment):
        found = Place()  # jax asks the TPU's metadata
    elif cluster == "gke":
        found = Place(
            read("JAX_COORDINATOR_ADDRESS"),
            int(read("JAX_NUM_PROCESSES")),
            int(read("JOB_COMPLETION_INDEX")),
        )
    else:
        found = Place()
        if coordinator is None or processes is None or process is None:
            raise StartupError(
                "--cluster plain needs --coordinator HOST:PORT, --processes N and --process I."
            )
    place = Place(
        found.coordinator if coordinator is None else coordinator,
        found.count if processes is None else processes,
        found.index if process is None else process,
        _given_devices(environment) or found.local_devices,
    )
    if place.index is not None and not 0 <= place.index < (place.count or 0):
        raise StartupError(f"process {place.index} is not one of {place.count}, counted from 0.")
    return place


_STARTERS = {
    "slurm": "srun",
    "openmpi": "mpirun",
    "gke": "the JobSet that launch.gke writes",
}


def _slurm(read: Callable[[str], str], environment: Mapping[str, str]) -> Place:
    count, index, local = (int(read(f"SLURM_{n}")) for n in ("NTASKS", "PROCID", "LOCALID"))
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    # One port per job, above those that the kernel hands out first.
    port = 61440 + int(read("SLURM_JOB_ID")) % 4096
    coordinator = f"{first_host(read('SLURM_STEP_NODELIST'))}:{port}"
    return Place(coordinator, count, index, _share(local, -(-count // nodes), environment))


def _openmpi(
    read: Callable[[str], str], environment: Mapping[str, str], coordinator: str | None
) -> Place:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    index, count, local, beside = (int(read(f"OMPI_COMM_WORLD_{name}")) for name in names)
    launcher = re.search(r"tcp://([\d.]+)[^:]*:(\d+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    if launcher:  # mpirun's own host; its port names the job
        coordinator = f"{launcher[1]}:{61440 + int(launcher[2]) % 4096}"
    elif count == beside:
        coordinator = f"127.0.0.1:{61440 + os.getppid() % 4096}"
    elif coordinator is None:
        raise StartupError(
            "--cluster openmpi: this Open MPI does not say where mpirun runs; add "
            "--coordinator HOST:PORT with the host of rank 0."
        )
    return Place(coordinator, count, index, _share(local, beside, environment))


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: 'gpu[03-07,9],login' -> 'gpu03'."""
    name = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    if name is None:
        raise StartupError(f"the node list '{nodes}' of Slurm names no host.")
    return name[1] + (name[2] or "")


def _share(local: int, beside: int, environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """This process's part of the node's GPUs, where the scheduler shows all of them to all."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if beside < 2 or len(visible) < 2 or len(visible) % beside:
        return None
    each = len(visible) // beside
    return tuple(range(local * each, (local + 1) * each))


def _given_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    given = environment.get("JAX_LOCAL_DEVICE_IDS")
    return tuple(map(int, given.split(","))) if given else None


def _connect(place: Place, deadline: float) -> None:
    """jax.distributed.initialize, with what can go wrong said before it can hang."""
    if place.coordinator is not None:
        _await_coordinator(place, deadline)
    options: dict[str, Any] = {}
    if place.coordinator is not None:
        options = dict(
            coordinator_address=place.coordinator,
            num_processes=place.count,
            process_id=place.index,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
        )
    left = max(1.0, deadline - time.monotonic())
    late = StartupError(
        f"the other processes{'' if place.count is None else f' of {place.count}'} did not come "
        f"within the start-up deadline; see whether all were started, with the same number of "
        f"processes, and can reach {place.coordinator or 'each other'}."
    )
    # jax's own deadline ends the process with a stack trace, and only tells that it passed.
    timer = threading.Timer(left, _exit_alone, [late])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(initialization_timeout=round(left) + 60, **options)
        jax.devices()  # waits for everyone's devices
    except (RuntimeError, ValueError) as error:  # jax's XlaRuntimeError is a RuntimeError
        raise StartupError(f"jax could not join the processes ({_first_line(error)}).") from error
    finally:
        timer.cancel()


def _await_coordinator(place: Place, deadline: float) -> None:
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise StartupError(f"--coordinator: expected HOST:PORT, got '{place.coordinator}'.")
    problem = ""
    while True:
        try:
            address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
            if place.index == 0:
                return
            with socket.socket(address[0], address[1]) as probe:
                probe.settimeout(5)
                probe.connect(address[4])
                return
        except socket.gaierror:
            problem = (
                f"the coordinator's host '{host}' does not resolve on {socket.gethostname()}; "
                f"give an address that all nodes know, or add it to their /etc/hosts"
            )
        except OSError as error:
            problem = (
                f"nothing answers at {place.coordinator} ({error.strerror or error}); process 0 "
                f"did not start there, or a firewall keeps the port"
            )
        if time.monotonic() > deadline:
            raise StartupError(f"{problem} (tried until the start-up deadline).")
        time.sleep(0.2)


def _check_devices(expected: int | None) -> None:
    """The one count that everything after relies on, with the likeliest reason if it is wrong."""
    if expected is None or jax.device_count() == expected:
        return
    counts: dict[int, int] = {}
    for device in jax.devices():
        counts[device.process_index] = counts.get(device.process_index, 0) + 1
    platform = jax.devices()[0].platform
    usual = max(counts.values())
    fewer = [index for index, count in counts.items() if count < usual]
    if platform == "cpu" and expected > len(counts) and usual == 1:
        cause = "jax found no accelerator: install encoders[cuda] or encoders[tpu] on every node"
    elif fewer:
        cause = f"process {fewer[0]} sees only {counts[fewer[0]]}, others {usual}; look at its node"
    elif usual == 1 and len(counts) < expected:
        cause = (
            "every process took one device: start one process per device, or let each see all of "
            "its node's (JAX_LOCAL_DEVICE_IDS, --gpus-per-task)"
        )
    else:
        cause = "the number of nodes or the devices per node is another than the launcher was told"
    error = StartupError(
        f"expected {expected} devices in all, but {len(counts)} processes see "
        f"{jax.device_count()} ({platform}); most likely {cause}."
    )
    error.agreed = True  # everyone sees the same counts
    raise error


def _leave() -> None:
    if not connected():
        return
    with contextlib.suppress(RuntimeError):  # a peer that died cannot say goodbye
        jax.distributed.shutdown()


def _exit_alone(error: BaseException) -> None:
    code = 1
    if isinstance(error, EncodersError):
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def connected() -> bool:
    """Whether this process has joined a run of processes, be it the only one."""
    return distributed.global_state.client is not None


# --- agreeing -------------------------------------------------------------------------------------


def together(what: str, function: Callable[[], T], seconds: float = STARTUP_SECONDS) -> T:
    """Calls `function` on every process; if it fails on one, it fails on all, with its error.

    Every process must make the same calls in the same order.

    Raises:
      EncodersError: what `function` raised here or elsewhere.
      DeadlineError: a process did not get here in time.
    """
    if jax.process_count() == 1:
        return function()
    key = f"encoders/together/{next(_counter)}"
    error = value = None
    try:
        value = function()
    except EncodersError as raised:
        error = raised
        said = {"code": raised.exit_code, "text": str(raised), "host": socket.gethostname()}
        _store().key_value_set(f"{key}/{jax.process_index()}", json.dumps(said))
    barrier(f"{key}/done", seconds, what)
    failures = _store().key_value_dir_get(key)
    if not failures:
        return value
    if error is None:
        path, text = min(failures, key=lambda item: int(item[0].rsplit("/", 1)[1]))
        said = json.loads(text)
        kinds = {kind.exit_code: kind for kind in EncodersError.__subclasses__()}
        error = kinds.get(said["code"], EncodersError)(
            f"process {path.rsplit('/', 1)[1]} on {said['host']}: {said['text']}"
        )
    error.agreed = True
    raise error


def from_first(what: str, function: Callable[[], T], seconds: float = STARTUP_SECONDS) -> T:
    """What `function` returns on process 0, on every process; it must be a JSON value."""
    if jax.process_count() == 1:
        return function()
    key = f"encoders/from_first/{next(_counter)}"

    def tell() -> Any:
        value = function()
        _store().key_value_set(key, json.dumps(value))
        return value

    value = together(what, tell if jax.process_index() == 0 else lambda: None, seconds)
    if jax.process_index() == 0:
        return value
    return json.loads(_store().blocking_key_value_get(key, round(1000 * min(seconds, _FOREVER))))


def barrier(name: str, seconds: float, what: str | None = None) -> None:
    """Returns when every process is here.

    Raises:
      DeadlineError: one did not come in time.
    """
    if jax.process_count() == 1:
        return
    try:
        _store().wait_at_barrier(name, round(1000 * min(seconds, _FOREVER)))
    except RuntimeError as error:
        raise DeadlineError(
            f"{what or name}: not every process came within {seconds:.0f} s ({_first_line(error)})."
        ) from error


def leave_note(topic: str, number: int, value: Any) -> None:
    """Leaves a JSON value of this process for process 0, and waits for nobody.

    Args:
      topic, number: what the value is of, such as 'times' and a step.
      value: a JSON value.
    """
    key = f"encoders/{topic}/{number}/{jax.process_index()}"
    _store().key_value_set(key, json.dumps(value))


def collect_notes(topic: str, number: int) -> dict[int, Any]:
    """process -> what it left under `number`, of those that have; they are forgotten after."""
    key = f"encoders/{topic}/{number}"
    found = _store().key_value_dir_get(key)
    _store().key_value_delete(f"{key}/")
    return {int(path.rsplit("/", 1)[1]): json.loads(text) for path, text in found}


def stop_agreed(count: int) -> bool:
    """Whether a SIGTERM to any process makes all stop at their `count`-th question.

    Every process must ask with the same counts, each once. It costs microseconds: jax's preemption
    service talks in the background, and only after a signal.
    """
    return multihost_utils.reached_preemption_sync_point(count)


def _store() -> Any:
    return distributed.global_state.client
