"""The losses over all pairs: blocks and rings give the formula, in memory that does not grow."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.layers.pooling import unit
from encoders.parallel import contrast as module
from encoders.parallel.contrast import contrast, fingerprints
from encoders.parallel.mesh import batch_sharding, make_mesh, replicated
from launch.planning import search, target

ROWS, DIM = 24, 6
KINDS = ("softmax", "sigmoid")


@functools.cache
def pairs():
    rng = np.random.default_rng(0)
    image, text = unit(jnp.asarray(rng.normal(size=(2, ROWS, DIM)), jnp.float32))
    caption = fingerprints(jnp.asarray(rng.integers(0, 3, (ROWS, 2)), jnp.int32))
    valid = np.arange(ROWS) % 7 != 3
    return image, text, jnp.float32(8), jnp.float32(-2), valid, caption


def call(kind, mesh, *arguments):
    if kind == "smoothed":
        return contrast("softmax", *arguments, mesh, smoothing=0.1)
    return contrast(kind, *arguments, mesh)


def values(kind, mesh, image, text, scale, bias, valid, caption):
    """The loss, its gradients, and everything else that is known."""

    def loss(*arguments):
        found = call(kind, mesh, *arguments, valid, caption)
        return found.loss, found

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(image, text, scale, bias)


@pytest.mark.parametrize("devices, block", [(1, ROWS * 4), (1, 1), (2, 12 * 3), (8, 2**24)])
@pytest.mark.parametrize("kind", [*KINDS, "smoothed"])
def test_blocks_and_rings_give_the_formula(kind, devices, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    expected = jax.jit(functools.partial(values, kind, None))(*pairs())
    mesh = make_mesh(data=devices, fsdp=1, devices=jax.devices()[:devices])
    found = jax.jit(functools.partial(values, kind, mesh))(*pairs())
    chex.assert_trees_all_close(found, expected, atol=2e-5)
    alone = jax.jit(functools.partial(call, kind, mesh))(*pairs())
    chex.assert_trees_all_close(alone, expected[0][1], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sharp_logits_overflow_nothing(kind):
    """A scale of 1000: exponentials are of differences."""
    image, text, _, bias, valid, caption = pairs()
    mesh = make_mesh(devices=jax.devices()[:1])
    sharp = image, text, jnp.float32(1000), bias, valid, caption
    found = jax.jit(functools.partial(values, kind, mesh))(*sharp)
    expected = jax.jit(functools.partial(values, kind, None))(*sharp)
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-3)


def test_fingerprints_tell_captions_apart():
    ids = jnp.asarray([[1, 2, 3, 0], [1, 2, 3, 0], [2, 1, 3, 0], [1, 2, 0, 3], [1, 2, 3, 3]])
    found = np.asarray(fingerprints(ids))
    assert (found[0] == found[1]).all()
    assert len({tuple(row) for row in found}) == 4
    many = np.random.default_rng(0).integers(0, 50_000, (20_000, 8))
    assert len(np.unique(fingerprints(jnp.asarray(many)), axis=0)) == len(np.unique(many, axis=0))


def temporary_bytes(kind, devices, rows=64, dim=128):
    """What the compiled loss and its gradient need on each device beside inputs and results."""
    mesh = make_mesh(devices=devices)
    split, whole = batch_sharding(mesh), replicated(mesh)
    batch = rows * len(devices)

    def array(*shape, dtype=jnp.float32, place=split):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    vectors, scalar = array(batch, dim), array(place=whole)
    made = jax.jit(functools.partial(values, kind, mesh)).lower(
        vectors,
        vectors,
        scalar,
        scalar,
        array(batch, dtype=bool),
        array(batch, 2, dtype=jnp.uint32),
    )
    return made.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_devices(kind):
    """At 64 rows a device, where all logits of 8 are 8 times and of 256 TPUs 256 times its own."""
    two, eight = (temporary_bytes(kind, jax.devices()[:count]) for count in (2, 8))
    assert eight <= 1.01 * two
    four, many = (
        temporary_bytes(kind, search.pod(target.parse_topology(topology)).devices)
        for topology in ("v4:2x2x1", "v4:4x4x16")
    )
    assert many <= 1.01 * four
    assert many < 64 * 64 * 256 * 4
