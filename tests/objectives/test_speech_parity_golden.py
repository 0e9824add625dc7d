"""Whole speech models with their heads, against transformers: losses, and gradients of everything.

Masks, negatives and noise are given; written by `python -m tools.golden.write_speech`.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.config import build
from encoders.objectives import OBJECTIVES
from encoders.objectives.speech_contrast import Drawn

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "speech"


@functools.cache
def golden(name):
    encoder = encoders.load(GOLDEN / name)
    with np.load(GOLDEN / name / "expected.npz") as file:
        arrays = {key: file[key] for key in file.files if key.startswith(("inputs", "heads"))}
    mask = arrays["inputs/mask"]
    batch = {"waveform": arrays["inputs/waveform"], "length": mask.sum(1).astype(np.int32)}
    return encoder, batch, arrays


def objective_of(encoder, **others):
    section = {**encoder.objective, **others}
    context = encoder.preprocessing.for_objectives
    return build(OBJECTIVES, section, "objective", encoder=encoder.module, **context)


def check_gradients(encoder, gradients, arrays, directory):
    """Written as if they were weights: under the names of transformers."""
    gradients = jax.device_get(gradients)
    trunk = {"params": gradients.pop("encoder")}
    carrier = dataclasses.replace(encoder, variables=trunk, heads=gradients)
    encoders.save(carrier, directory / "out", format="hf", heads=True)
    ours = files.read_tensors(directory / "out")
    prefix = "heads/gradients/"
    theirs = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        theirs = {k.replace(f"parametrizations.weight.{new}", old): x for k, x in theirs.items()}
    left = {key for key in set(ours) - set(theirs) if np.any(ours[key])}
    assert not left, left  # those of what is not used are zero
    assert set(theirs) <= set(ours)
    for key, expected in theirs.items():
        # Of a loss that is a sum over frames: some are in the tens.
        atol = 1e-4 * max(1, np.abs(expected).max() / 10)
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2_layer"])
def test_pretraining(name, tmp_path):
    encoder, batch, arrays = golden(name)
    fixed = float(arrays["heads/temperature"])
    objective = objective_of(
        encoder,
        feature_penalty=0.0,
        masking={"rate": 1.0, "length": 3},  # as many places as there are frames
        temperature={"start": fixed, "floor": fixed},
    )

    def loss(params):
        def run(self):
            hidden = self.hidden(arrays["inputs/hidden"], batch)
            rows = np.arange(len(hidden.frames))[:, None]
            drawn = Drawn(hidden, negatives, arrays["heads/noise"][rows, places])
            front = self.features(batch, train=True)
            return self.compare(self.losses(batch, front, drawn, train=True), batch)

        outcome = objective.apply({"params": params}, method=run)
        return outcome.loss, outcome

    negatives, places = slots(arrays, objective)
    params = {"encoder": encoder.variables["params"], **encoder.heads}
    (total, outcome), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    want = {key.removeprefix("heads/train/"): x for key, x in arrays.items() if "/train/" in key}
    np.testing.assert_allclose(total, want["loss"], rtol=1e-5)
    for key in ("contrastive_loss", "diversity_loss"):
        np.testing.assert_allclose(outcome.metrics[key][0], want[key], rtol=1e-5)
    found = outcome.metrics["perplexity"]
    np.testing.assert_allclose(found[0] / found[1], want["codevector_perplexity"], rtol=1e-5)
    check_gradients(encoder, gradients, arrays, tmp_path)


def slots(arrays, objective):
    """Negatives as places of hidden frames [B, K, N], and the frames of the places [B, K]."""
    hidden, negatives = arrays["inputs/hidden"], arrays["inputs/negatives"]
    count = objective.masking.slots(hidden.shape[1])
    found = np.zeros((len(hidden), count, negatives.shape[2]), np.int32)
    places = np.zeros((len(hidden), count), np.int32)
    for row, mask in enumerate(hidden):
        frames = np.flatnonzero(mask)
        places[row, : len(frames)] = frames
        times = negatives[row, frames] - row * hidden.shape[1]
        found[row, : len(frames)] = np.searchsorted(frames, times)
    return found, places


@pytest.mark.parametrize("name", ["wav2vec2_ctc", "hubert_ctc", "data2vec"])
def test_letters(name, tmp_path):
    encoder, batch, arrays = golden(name)
    objective = objective_of(encoder)
    labels = arrays["heads/labels"]
    batch = {
        **batch,
        "targets": np.maximum(labels, 0).astype(np.int32),
        "target_length": (labels >= 0).sum(1).astype(np.int32),
    }

    def loss(params):
        return objective.apply({"params": params}, batch).loss

    params = {"encoder": encoder.variables["params"], **encoder.heads}
    total, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(total, arrays["heads/loss"], rtol=1e-5)
    check_gradients(encoder, gradients, arrays, tmp_path)


def test_a_written_model_says_what_it_was_trained_with(tmp_path):
    encoder, _, _ = golden("wav2vec2")
    encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Wav2Vec2ForPreTraining"]
    assert [config[key] for key in ("codevector_dim", "num_negatives")] == [6, 4]
