"""Every test runs on the CPU, seen by jax as eight devices, so sharding is tested everywhere."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Here, and in the processes that tests start: what is compiled runs for a few steps, so compiling
# fast matters more than running fast.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


def pytest_addoption(parser):
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write the rendered configs under tests/golden/configs instead of comparing them",
    )


# Files that take a minute or more come first, so that none is left alone at the end.
LONG = (
    "test_local_kills",
    "test_slurm_cluster",
    "test_stopping",
    "test_compiled",
    "test_step",
    "test_elastic",
    "test_training",
)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture
def rewrite_golden(request):
    return request.config.getoption("--rewrite-golden")
