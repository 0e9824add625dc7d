"""HuBERT's two iterations, from clips over clusters to a model and its clusters."""

import types

import jax
import numpy as np
import optax
import pytest

from encoders.config import build
from encoders.data import SOURCES
from encoders.data.audio import AudioPreprocessing
from encoders.data.batcher import Batcher
from encoders.data.pipeline import build_transforms
from encoders.errors import ConfigError
from encoders.models.wav2vec2 import Wav2Vec2
from encoders.objectives.cluster_prediction import ClusterPrediction
from encoders.objectives.span_masking import SpanMasking
from tests.evaluation.speech_toys import RATE
from tools import cluster
from tools.clips import Clips, frames_of

CLIPS = dict(name="tones", number=24)
MODEL = Wav2Vec2(
    width=16, depth=1, mlp_dim=32, num_heads=2, conv_dim=16, conv_kernels=(10, 8, 4),
    conv_strides=(5, 8, 4), position_kernel=8, position_groups=4, layer_drop=0.0,
)  # fmt: skip


def train(units, rate):
    """Three steps on the clusters of a directory; parameters of the encoder, and the losses."""
    preprocessing = AudioPreprocessing(
        sample_rate=RATE, max_samples=1600, min_samples=400, units_per_second=rate
    )
    section = dict(name="units", path=str(units), source=CLIPS)
    source = build(SOURCES, section, "data.source", preprocessing=preprocessing)
    sections = (dict(name="decode_audio"), dict(name="crop_audio"))
    transforms = build_transforms(sections, preprocessing=preprocessing)
    objective = ClusterPrediction(
        MODEL,
        num_clusters=6,
        masking=SpanMasking(rate=0.5, length=2),
        projection_dim=8,
        **preprocessing.for_objectives,
    )
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state, batch, key):
        batch = {**batch, "waveform": preprocessing.normalize(batch["waveform"])}

        def loss(params):
            rngs = {"corrupt": key, "dropout": key}
            outcome = objective.apply({"params": params}, batch, train=True, rngs=rngs)
            return outcome.loss / outcome.weight, outcome.metrics

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, metrics

    losses, params, state = [], None, None
    batcher = Batcher(source, transforms, 8, seed=0)
    for number in range(3):
        batch = batcher.empty()
        batcher.fill(number, batch)
        assert batch["units"].shape == (8, preprocessing.num_units(1600))
        if params is None:
            floats = {**batch, "waveform": preprocessing.normalize(batch["waveform"])}
            rngs = {"params": jax.random.key(0), "corrupt": jax.random.key(0)}
            params = jax.jit(objective.init)(rngs, floats)["params"]
            state = optimizer.init(params)
        params, state, loss, metrics = step(params, state, batch, jax.random.key(number))
        losses.append(float(loss))
        assert metrics["accuracy"][1] > 0
    return params["encoder"], losses


def test_two_iterations(tmp_path):
    preprocessing = AudioPreprocessing(sample_rate=RATE, min_samples=400)
    source = build(SOURCES, CLIPS, "x", preprocessing=preprocessing)
    options = dict(clusters=6, restarts=2, batch_size=24)
    cepstra = cluster._of_mfcc(RATE)
    first = cluster.cluster(
        cepstra, Clips(source, cepstra.preprocessing, 10**6), str(tmp_path / "1"), **options
    )
    assert first["purity"] > 0.9
    params, losses = train(tmp_path / "1", 100.0)
    assert np.isfinite(losses).all()

    rate = RATE / MODEL.stride
    frames = cluster.Frames(
        frames_of(MODEL, preprocessing, 0), {"params": params}, preprocessing, 400, None, rate, {}
    )
    second = cluster.cluster(
        frames, Clips(source, preprocessing, 10**6), str(tmp_path / "2"), **options
    )
    assert second["units_per_second"] == pytest.approx(50)
    assert second["clips"] == 24
    _, losses = train(tmp_path / "2", 50.0)
    assert np.isfinite(losses).all()


def test_clips_that_a_config_trains_on(tmp_path):
    def source(name, **sections):
        path = tmp_path / f"{name}.py"
        path.write_text(
            "from ml_collections import ConfigDict\n\n\n"
            f"def get_config():\n    return ConfigDict({sections})\n"
        )
        return cluster._training_source(str(path), AudioPreprocessing(sample_rate=RATE // 2))

    audio = dict(preprocessing=dict(name="audio"))
    digits = dict(name="audio", path="sample:digits", split="test")
    joined = dict(name="joined", count=2, source=digits)
    rows = source("rows", data=dict(source=dict(name="units", path="x", source=joined)), **audio)
    assert len(rows[0]["waveform"]) > 0  # of another rate
    half = dict(name="units", path="x", stop=0.5, source=CLIPS)
    assert len(source("half", data=dict(source=half), **audio)) == 12
    for name, sections in {"no_data": audio, "no_sound": dict(data=dict(source=CLIPS))}.items():
        with pytest.raises(ConfigError, match="trains on no clips of sound"):
            source(name, **sections)
    mixture = dict(name="mixture", sources=(CLIPS,))
    for number, inner in enumerate((mixture, dict(CLIPS, start=0.5))):
        with pytest.raises(ConfigError, match="'units' has stop around a source that is a mixture"):
            source(f"twice_{number}", data=dict(source=dict(half, source=inner)), **audio)


def test_units_that_the_model_cannot_tell_are_refused():
    objective = ClusterPrediction(MODEL, num_clusters=6)
    objective.check_source(types.SimpleNamespace(clusters=6))
    with pytest.raises(ConfigError, match=r"num_clusters: 6, but data\.source has units of 7"):
        objective.check_source(types.SimpleNamespace(clusters=7))
    with pytest.raises(ConfigError, match=r"needs clips with units.* got Tones"):
        objective.check_source(build(SOURCES, CLIPS, "x"))
