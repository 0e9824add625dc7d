"""What the schedulers say of a process, and what they fail to say."""

import pytest

from encoders.errors import StartupError
from encoders.parallel.processes import Place, find_place, first_host

SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_NTASKS": "32",
    "SLURM_PROCID": "13",
    "SLURM_LOCALID": "5",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
ALL_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


@pytest.mark.parametrize(
    "nodes, host",
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-06]", "gpu03"),
        ("gpu[3,07-09],login", "gpu3"),
        ("a-b-[1-2]", "a-b-1"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


def test_slurm_with_one_process_per_gpu():
    place = find_place("slurm", SLURM)
    assert place == Place(f"gpu03:{61440 + 12345 % 4096}", 32, 13, None)  # it sees its GPU only
    assert find_place("slurm", SLURM | ALL_GPUS).local_devices == (5,)
    assert find_place("slurm", SLURM | {"CUDA_VISIBLE_DEVICES": "5"}).local_devices is None


def test_slurm_with_one_process_per_node_takes_all_devices():
    node = SLURM | ALL_GPUS | {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
    assert find_place("slurm", node) == Place(f"gpu03:{61440 + 12345 % 4096}", 4, 2, None)


def test_the_user_has_the_last_word_on_devices():
    given = SLURM | ALL_GPUS | {"JAX_LOCAL_DEVICE_IDS": "2,3"}
    assert find_place("slurm", given).local_devices == (2, 3)


def test_open_mpi():
    assert find_place("openmpi", OPENMPI) == Place(f"10.96.0.1:{61440 + 34911 % 4096}", 4, 3, None)
    assert find_place("openmpi", OPENMPI | ALL_GPUS).local_devices == (4, 5, 6, 7)
    modern = {k: v for k, v in OPENMPI.items() if "hnp" not in k}
    with pytest.raises(StartupError, match="add --coordinator HOST:PORT"):
        find_place("openmpi", modern)
    assert find_place("openmpi", modern, coordinator="n1:5000").coordinator == "n1:5000"
    one_node = modern | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    assert find_place("openmpi", one_node).coordinator.startswith("127.0.0.1:")


def test_kubernetes_and_tpu():
    gpus = {
        "JAX_COORDINATOR_ADDRESS": "x-0.x:1234",
        "JAX_NUM_PROCESSES": "4",
        "JOB_COMPLETION_INDEX": "3",
    }
    assert find_place("gke", gpus) == Place("x-0.x:1234", 4, 3)
    assert find_place("gke", {"TPU_WORKER_ID": "1"}) == Place()
    assert find_place("tpu", {}) == Place()


@pytest.mark.parametrize("cluster, starter", [("slurm", "srun"), ("openmpi", "mpirun")])
def test_a_process_that_its_scheduler_did_not_start_says_so(cluster, starter):
    with pytest.raises(StartupError, match=f"is not set.*not started by {starter}"):
        find_place(cluster, {})


def test_a_plain_cluster_needs_to_be_told():
    with pytest.raises(StartupError, match="--coordinator HOST:PORT"):
        find_place("plain", {}, processes=2, process=0)
    with pytest.raises(StartupError, match="process 2 is not one of 2"):
        find_place("plain", {}, coordinator="a:1", processes=2, process=2)
