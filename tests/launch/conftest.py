"""What tests of plans share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compiler():
    """libtpu without its search for faster programs, two thirds of its time.

    What it says of memory and of collectives is the same within a percent, but where a product is
    made piece by piece in what reads it: without the search it is written out as a whole.
    """
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield
    jax.config.update("jax_exec_time_optimization_effort", 0.0)
