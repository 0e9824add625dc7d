"""Features are the same on any mesh and batch size, and are extracted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toys import PREPROCESSING, TEST, ToyEncoder, init

from encoders.config import build
from encoders.data import SOURCES
from encoders.errors import ConfigError
from encoders.evaluation.features import FeatureExtractor, Split, pixels, select
from encoders.parallel.mesh import make_mesh
from encoders.types import Encoded


def split(batch_size=16, **fields):
    return Split(build(SOURCES, TEST, "test"), "test", batch_size, **fields)


@pytest.fixture(scope="module")
def expected():
    """Features computed with nothing but the module and the source."""
    encoder, source = ToyEncoder(), build(SOURCES, TEST, "test")
    variables = init(encoder)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    encoded = encoder.apply(variables, PREPROCESSING.normalize(images), layers=(3,))
    return encoder, variables, encoded, [source[i]["label"] for i in range(len(source))]


def test_padded_last_batch_is_dropped(expected):
    encoder, variables, encoded, labels = expected
    found = FeatureExtractor(PREPROCESSING).encoder(encoder, variables, split(), "pooled")
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, encoded.pooled, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(data=8, fsdp=1, tensor=1),
        dict(data=2, fsdp=4, tensor=1),
        dict(data=1, fsdp=2, tensor=4),
    ],
)
def test_any_mesh_gives_the_same(expected, sizes):
    encoder, variables, encoded, labels = expected
    mesh = make_mesh(**sizes)
    sharded = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P("fsdp") if x.ndim == 2 else P())),
        variables,
    )
    extractor = FeatureExtractor(PREPROCESSING, mesh)
    found = extractor.encoder(encoder, sharded, split(batch_size=13), "pooled")
    np.testing.assert_allclose(found.features, encoded.pooled, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)


def test_means_leave_out_prefix_and_padding():
    tokens = jnp.asarray([[[9.0], [1.0], [3.0], [5.0]]])
    mask = jnp.asarray([[True, True, True, False]])
    encoded = Encoded(tokens, mask, hidden={2: 10 * tokens}, num_prefix=1)
    np.testing.assert_allclose(select(encoded, "mean"), [[2.0]])
    np.testing.assert_allclose(select(encoded, 2), [[20.0]])
    with pytest.raises(ConfigError, match="does not pool"):
        select(encoded, "pooled")


def test_several_features_stand_side_by_side(expected):
    encoder, variables, encoded, _ = expected
    asked = ("max", "pooled", 3)
    found = FeatureExtractor(PREPROCESSING).encoder(encoder, variables, split(), asked)
    parts = [select(encoded, feature) for feature in asked]
    np.testing.assert_allclose(parts[0], encoded.tokens[:, encoded.num_prefix :].max(1), rtol=1e-6)
    np.testing.assert_allclose(found.features, np.concatenate(parts, 1), rtol=1e-5, atol=1e-5)


def test_a_layer_is_asked_of_the_encoder(expected):
    encoder, variables, encoded, _ = expected
    found = FeatureExtractor(PREPROCESSING).encoder(encoder, variables, split(), 3)
    np.testing.assert_allclose(
        found.features, encoded.hidden[3][:, 1:].mean(1), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_forward_gives_float32_features(expected):
    encoder, variables, encoded, _ = expected
    found = FeatureExtractor(PREPROCESSING).encoder(
        encoder, variables, split(dtype="bfloat16"), "pooled"
    )
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, encoded.pooled, atol=0.05)
    assert np.abs(found.features - encoded.pooled).max() > 1e-5


def test_same_weights_are_not_extracted_twice(expected, monkeypatch):
    encoder, variables, _, _ = expected
    extractor, runs = FeatureExtractor(PREPROCESSING), []
    run = extractor._run
    monkeypatch.setattr(extractor, "_run", lambda *a: runs.append(1) or run(*a))
    first = extractor.encoder(encoder, dict(variables), split(), "pooled")
    again = extractor.encoder(ToyEncoder(), dict(variables), split(), "pooled")
    assert again is first
    assert len(runs) == 1

    trained = jax.tree.map(lambda x: x + 1, variables)
    other = extractor.encoder(encoder, trained, split(), "pooled")
    assert len(runs) == 2
    assert np.abs(other.features - first.features).max() > 0.1
    del trained, other
    extractor.encoder(encoder, jax.tree.map(lambda x: x + 2, variables), split(), "pooled")
    assert len(extractor._cache) == 2  # the features of dead weights went with them


def test_large_sets_are_not_kept(expected):
    encoder, variables, _, _ = expected
    extractor = FeatureExtractor(PREPROCESSING, cache_bytes=100)
    extractor.encoder(encoder, variables, split(), "pooled")
    assert not extractor._cache


def test_random_weights_differ_by_seed_only(expected):
    encoder, variables, _, _ = expected
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    on_mesh = FeatureExtractor(PREPROCESSING, mesh).random(encoder, variables, split(), "pooled", 3)
    alone = FeatureExtractor(PREPROCESSING).random(encoder, variables, split(), "pooled", 3)
    other = FeatureExtractor(PREPROCESSING).random(encoder, variables, split(), "pooled", 4)
    np.testing.assert_allclose(on_mesh.features, alone.features, rtol=1e-5, atol=1e-5)
    assert np.abs(other.features - alone.features).max() > 0.1


def test_pixels_are_raw_when_small_and_shrunk_when_large():
    images = jnp.arange(2 * 6 * 5 * 3, dtype=jnp.float32).reshape(2, 6, 5, 3)
    np.testing.assert_array_equal(pixels(images), np.reshape(images, (2, -1)))
    large = pixels(jnp.ones((1, 224, 112, 3)))
    assert large.shape == (1, 45 * 22 * 3)
    np.testing.assert_allclose(large, 1.0, rtol=1e-6)
