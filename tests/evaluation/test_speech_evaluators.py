"""Evaluators on sound."""

import jax
import numpy as np
import pytest
from speech_toys import encoder, init, preprocessing

from encoders.config import build
from encoders.errors import ConfigError, DataError
from encoders.evaluation import EVALUATORS
from encoders.evaluation.features import select

TRAIN = dict(name="tones", number=64, broken=3)
TEST = dict(name="tones", number=40, seed=1)
SPLITS = dict(train=TRAIN, test=TEST, batch_size=32)


def make(name, mesh=None, **fields):
    context = {"preprocessing": preprocessing(), "mesh": mesh, "directory": None}
    return build(EVALUATORS, dict(name=name, **fields), "evaluators.x", **context)


def test_probes_of_all_layers_beside_cepstra():
    module = encoder()
    variables = init(module)
    fields = dict(feature="weighted_sum", l2=(0.1,), baselines=("mfcc",))
    probe = make("linear_probe", **SPLITS, **fields, max_iterations=50)
    found = probe.run(module, variables)
    assert found["mfcc"] > 0.9
    assert found["layer0_weight"] + found["layer1_weight"] == pytest.approx(1, abs=1e-5)
    fields = dict(k=(5,), target="speaker", extractor=probe.extractor)
    speakers = make("knn", **SPLITS, baselines=("mfcc",), **fields)
    assert speakers.run(module, variables)["mfcc"] > 0.9
    with pytest.raises(DataError, match="have no 'dialect'"):
        make("knn", **SPLITS, **{**fields, "target": "dialect"}).run(module, variables)
    with pytest.raises(ConfigError, match=r"evaluators\.x\.feature"):
        make("knn", **SPLITS, feature="weighted_sum", k=(5,))


def test_layers_are_averaged_over_real_frames():
    module = encoder()
    waveform = np.random.default_rng(0).normal(size=(2, 1600)).astype(np.float32)
    mask = np.arange(1600) < np.array([[1600], [900]])

    @jax.jit
    def every(variables, waveform):
        encoded = module.apply(variables, waveform, mask=mask, layers="all")
        return select(encoded, "weighted_sum"), encoded

    found, encoded = every(init(module), waveform)
    assert found.shape == (2, 2, 16)
    for layer, tokens in encoded.hidden.items():
        frames = module.frames(900)
        np.testing.assert_allclose(found[1, layer], tokens[1, :frames].mean(0), atol=1e-5)
    np.testing.assert_allclose(every(init(module), waveform * mask)[0], found, atol=1e-5)
