"""What tests of plans share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compiler():
    """libtpu with less search for faster programs (openxla.org/xla/effort_levels), which is two
    thirds of its time.

    What it says of memory and of collectives is the same within a percent, but where a product is
    made piece by piece in what reads it: with less search it is written out as a whole.
    """
    jax.config.update("jax_optimization_level", "O1")
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")
