"""XLNet as an encoder: padding, packing, scan, dropout, errors; its streams' values are golden."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.encoder import TextEncoder
from encoders.errors import ConfigError
from encoders.layers.stack import stack_layers, unstack_layers
from encoders.layers.two_stream import distance_encodings, distance_scores, mirror
from encoders.models import MODELS

TINY = {"width": 12, "depth": 2, "mlp_dim": 20, "num_heads": 3, "vocab_size": 23}
RNG = np.random.default_rng(0)
IDS = RNG.integers(5, 23, (3, 9)).astype(np.int32)
TYPES = RNG.integers(0, 3, (3, 9)).astype(np.int32)


@functools.cache
def tiny(**fields):
    """An encoder, and variables in which nothing is zero or one."""
    model = config.build(MODELS, {"name": "xlnet", **TINY, **fields}, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(1), IDS)
    rng = np.random.default_rng(2)  # numpy, which compiles nothing
    return model, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@functools.cache
def compiled():
    """Output, and gradients of a number that weighs the outputs of real tokens differently."""
    model, variables = tiny()

    def loss(variables, ids, segments, types, weight):
        out = model.apply(variables, ids, segments=segments, token_types=types)
        return (jnp.sin(out.tokens * jnp.arange(1, 13)).sum(-1) * weight).sum(), out

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def call(ids, segments, types=None, weight=1.0):
        types = np.zeros_like(ids) if types is None else types
        (_, out), found = run(variables, ids, segments, types, weight * (segments > 0))
        return out, found

    return call


def test_padding_anywhere_changes_nothing():
    """Texts of 4 tokens, before, behind and between padding, and one of nothing but padding."""
    segments = np.zeros((4, 9), np.int32)
    ids = np.tile(IDS[0], (4, 1))
    for row, start in enumerate((0, 5, 2)):
        segments[row, start : start + 4] = 1
        ids[row, start : start + 4] = IDS[1, :4]
    out, gradients = compiled()(ids, segments)
    for row, start in enumerate((0, 5, 2)):
        close(out.tokens[row, start : start + 4], out.tokens[0, :4])
        close(out.pooled[row], out.tokens[0, 3])  # the last that is real
    np.testing.assert_array_equal(out.mask, segments > 0)
    assert np.isfinite(out.tokens).all()
    assert not out.pooled[3].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_packed_texts_are_as_if_alone():
    """Outputs and gradients of three texts in one row, and of each in a row of its own."""
    segments = np.zeros((4, 9), np.int32)
    segments[0] = [1, 1, 1, 2, 2, 2, 2, 3, 0]
    packed, together = compiled()(np.tile(IDS[0], (4, 1)), segments, np.tile(TYPES[0], (4, 1)))
    ids, types, alone = (np.zeros((4, 9), np.int32) for _ in range(3))
    spans = ((0, 3), (3, 7), (7, 8))
    for row, (start, end) in enumerate(spans):
        ids[row, : end - start] = IDS[0, start:end]
        types[row, : end - start] = TYPES[0, start:end]
        alone[row, : end - start] = 1
    apart, each = compiled()(ids, alone, types)
    for row, (start, end) in enumerate(spans):
        close(packed.tokens[0, start:end], apart.tokens[row, : end - start])
    # Relative to the gradients, which are large here.
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(each))
    jax.tree.map(lambda a, b: close(a / scale, b / scale), together, each)


def test_an_id_beyond_the_vocabulary_is_not_some_other_word():
    ids = np.tile(IDS[0], (4, 1))
    ids[0, 3] = 23
    tokens = compiled()(ids, np.ones_like(ids))[0].tokens
    assert np.isnan(tokens[0]).any()
    assert np.isfinite(tokens[1:]).all()


def test_scan_with_remat_computes_the_same():
    model, variables = tiny()
    scanned = model.clone(scan=True, remat="full")
    stacked = {"params": stack_layers(variables["params"])}
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), IDS)
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, stacked)
    targets = np.array([[1, 4], [0, 2], [8, 3]])
    visible = np.random.default_rng(1).random((3, 9, 9)) < 0.5

    def both(model, variables):
        streams = model.apply(
            variables, IDS, targets, visible, layers=(0, -1), method="two_streams"
        )
        return sum(jnp.square(stream.tokens).sum() for stream in streams), streams

    found = []
    for module, params in ((model, variables), (scanned, stacked)):
        compiled = jax.jit(jax.value_and_grad(functools.partial(both, module), has_aux=True))
        found.append(compiled(params))
    ((_, plain), first), ((_, other), second) = found
    for a, b in zip(plain, other, strict=True):
        close(a.tokens, b.tokens)
        for layer in (0, 1):
            close(a.hidden[layer], b.hidden[layer])
    second = unstack_layers(second["params"])
    jax.tree.map(lambda a, b: close(a, b, 1e-4), first["params"], second)


def test_dropout_is_on_in_training_only():
    model, variables = tiny(dropout=0.3)
    apply = jax.jit(lambda v, key: model.apply(v, IDS, train=True, rngs={"dropout": key}).tokens)
    first, second = (apply(variables, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 0.1
    # On the last block's output too, as in the reference.
    assert 0.15 < (np.asarray(first) == 0).mean() < 0.45


def test_distances_are_those_of_their_definition():
    length, keys, heads, dim = 5, 7, 2, 3
    rng = np.random.default_rng(3)
    query = rng.normal(size=(2, length + 2, heads, dim)).astype("f4")
    positions = rng.normal(size=(keys + length - 1, heads, dim)).astype("f4")
    targets = np.array([[3, 0], [4, 4]])
    found = np.asarray(
        jax.jit(distance_scores, static_argnums=2)(query, positions, length, targets)
    )
    for row in range(2):
        places = [*range(length), *targets[row]]
        for index, place in enumerate(places):
            for key in range(keys):
                distance = keys - length + place - key  # the first keys are a memory's
                want = (query[row, index] * positions[keys - 1 - distance]).sum(-1)
                close(found[row, :, index, key], want)


def test_distances_are_encoded_both_ways_and_clamped():
    encodings = np.asarray(distance_encodings(7, 5, 12, None))
    assert encodings.shape == (11, 12)
    np.testing.assert_array_equal(encodings[6], [0] * 6 + [1] * 6)  # no distance
    close(mirror(encodings)[4], encodings[8], 1e-6)
    clamped = distance_encodings(7, 5, 12, 2)
    close(clamped[0], encodings[4])
    close(clamped[-1], encodings[8])


def test_flops_count_every_product():
    d, t, m, hidden, layers = 12, 9, 4, 20, 2
    block = 4 * 2 * t * d * d + 2 * 2 * m * d * d + 2 * 2 * (t + m) * d * hidden
    block += (t + m) * (3 * 2 * t * d + 2 * 2 * d)
    assert tiny()[0].flops(t, m) == layers * block


def test_a_loaded_encoder_takes_token_types_of_its_tokenizer():
    encoder = TextEncoder(*tiny(pool="mean"))
    out = encoder(IDS, token_types=TYPES, mask=np.ones_like(IDS), layers="all")
    assert out.tokens.shape == (3, 9, 12)
    close(out.pooled, out.tokens.mean(1))
    assert set(out.hidden) == {0, 1}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"variant": "bas"}, "model.variant: unknown size 'bas'. Did you mean 'base'"),
        ({"num_heads": 5}, "num_heads: 5 does not divide the width 12"),
        ({"width": 9}, "relative encodings need an even width, got 9"),
        ({"pool": "pooler"}, "model.pool: unknown value 'pooler'"),
        ({"max_length": 9}, "model.max_length: unknown field"),
    ],
)
def test_wrong_fields_are_one_sentence(fields, message):
    def build_and_init():
        model = config.build(MODELS, {"name": "xlnet", **TINY, **fields}, "model")
        jax.eval_shape(model.init, jax.random.key(0), IDS)

    with pytest.raises(ConfigError, match=message):
        build_and_init()


def test_wrong_inputs_are_one_sentence():
    model, variables = tiny()
    with pytest.raises(ConfigError, match=r"encodes integer ids \[B, T\], not float32 \[1, 8, 8"):
        model.apply(variables, np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ConfigError, match="a mask or segments, not both"):
        model.apply(variables, IDS, mask=IDS > 0, segments=IDS)
