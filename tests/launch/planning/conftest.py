"""What is planned here is what a machine would run: with every optimisation."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def optimized():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
