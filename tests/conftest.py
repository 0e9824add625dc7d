"""Every test runs on the CPU, seen by jax as eight devices, so sharding is tested everywhere."""

import importlib.metadata
import os
import sys

import hypothesis
import pytest

from encoders.parallel.host import look_for_garbage_rarely

# Here, and in the processes that tests start: what is compiled runs for a few steps, so compiling
# fast matters more than running fast.
QUICK = ["--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # takes a third off; later it is gone
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile every module anew
sys.dont_write_bytecode = False  # nor does each run have to rewrite every test's assertions
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # for launchers, which keep a cache
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), *QUICK, "--xla_force_host_platform_device_count=8"]
)

look_for_garbage_rarely()
hypothesis.settings.register_profile("busy", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("busy")  # a machine that does other things, too


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
