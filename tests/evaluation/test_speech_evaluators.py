"""Evaluators on sound."""

import dataclasses
import functools
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from speech_toys import RATE, encoder, init, preprocessing

from encoders.config import build
from encoders.data.characters import Characters
from encoders.errors import ConfigError, DataError
from encoders.evaluation import EVALUATORS
from encoders.evaluation.features import select
from encoders.evaluation.frames import frame_rate, frames_at, moments
from encoders.evaluation.transcription import greedy
from encoders.models.spectrogram_vit import SpectrogramViT
from encoders.parallel.mesh import make_mesh

PLAIN = preprocessing()
TRAIN = dict(name="tones", number=64, broken=3)
TEST = dict(name="tones", number=40, seed=1)
SPLITS = dict(train=TRAIN, test=TEST, batch_size=32)
VOCABULARY = json.dumps({sign: i for i, sign in enumerate(["<pad>", "|", *"adefimor"])})
ARPA = """
\\data\\
ngram 1=7
ngram 2=1

\\1-grams:
-1\t<unk>\t0
-99\t<s>\t0
-1\t</s>\t0
-1\tdo\t0
-1\tre\t0
-2\tmi\t0
-0.5\tfa\t0

\\2-grams:
-0.3\t<s> do

\\end\\
"""


def make(name, mesh=None, preprocessing=PLAIN, **fields):
    context = {"preprocessing": preprocessing, "mesh": mesh, "directory": None}
    return build(EVALUATORS, dict(name=name, **fields), "evaluators.x", **context)


def test_probes_of_all_layers_beside_cepstra(caplog):
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
    some = make("knn", **{**SPLITS, "train": dict(TRAIN, unnamed=5)}, baselines=("mfcc",), **fields)
    assert some.run(module, variables)["mfcc"] > 0.9
    assert "train: 4 of 63 examples have no known speaker" in caplog.text
    none = make("knn", **{**SPLITS, "train": dict(TRAIN, unnamed=64)}, **fields)
    with pytest.raises(DataError, match="have no 'speaker'"):
        none.run(module, variables)
    with pytest.raises(DataError, match="have no 'dialect'"):
        make("knn", **SPLITS, **{**fields, "target": "dialect"}).run(module, variables)
    with pytest.raises(ConfigError, match=r"evaluators\.x\.feature"):
        make("knn", **SPLITS, feature="weighted_sum", k=(5,))


def test_frames_are_probed_by_their_units():
    module = encoder()
    clips = dict(number=24, name="tunes")
    splits = dict(train=clips, test=dict(clips, number=12, seed=1), batch_size=12, frames=6)
    clock = dataclasses.replace(PLAIN, units_per_second=100.0)
    fields = dict(splits, l2=(0.1,), baselines=("mfcc",), max_iterations=50)
    probe = make("frame_probe", preprocessing=clock, **fields)
    found = probe.run(module, init(module))
    assert found["mfcc"] > 0.9
    assert found["layer0_weight"] + found["layer1_weight"] == pytest.approx(1, abs=1e-5)
    train, _ = (probe.extractor.cepstra(split) for split in probe._splits())
    np.testing.assert_array_equal(train.rows, np.repeat(np.arange(24), 6))
    assert (train.labels.reshape(-1, 2, 3) == train.labels.reshape(-1, 2, 3)[..., :1]).all()
    held = probe.held_out(train).reshape(-1, 6)  # clips, and not frames of all
    assert held.all(1).sum() == held.any(1).sum() == 2
    with pytest.raises(DataError, match="at least 2 clips"):
        probe.held_out(train._replace(rows=np.zeros(6)))
    with pytest.raises(ConfigError, match=r"train: needs clips with units, .*got Tones"):
        make("frame_probe", **SPLITS)
    with pytest.raises(ConfigError, match="frames: expected a number from 1"):
        make("frame_probe", **{**splits, "frames": 0})


def test_moments_are_spread_over_what_is_known():
    units = np.array([[5, 6, 7, 8, 9, 10], [3, 2, 1, -1, -1, -1], [4, -1, -1, -1, -1, -1]])
    found = jax.jit(moments, static_argnums=(1, 2))(units, 2, 50.0)
    np.testing.assert_array_equal(found.units[:, :1], [[6], [3], [4]])
    np.testing.assert_array_equal(found.units[:2, 1], [9, 1])
    np.testing.assert_array_equal(found.used, [[1, 1], [1, 1], [1, 0]])
    np.testing.assert_allclose(found.seconds[:2], [[0.03, 0.09], [0.01, 0.05]], rtol=1e-6)
    # Of 25 frames a second, the last of which is not there: the one before stands for it.
    mask = np.arange(3) < np.array([[2], [3], [1]])
    frames = np.arange(9.0).reshape(3, 3, 1)
    at = frames_at(frames, mask, found.seconds, 25.0)
    np.testing.assert_array_equal(at[:2, :, 0], [[0, 1], [3, 4]])
    with pytest.raises(ConfigError, match="SpectrogramViT does not"):
        frame_rate(SpectrogramViT(), RATE)


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


# --- transcripts ----------------------------------------------------------------------------------


class Reader(nn.Module):
    """Spells the targets on twice as many frames, blanks between; 'fa' becomes 'ma'."""

    characters: Characters

    def logits(self, batch):
        targets = batch["targets"]
        wrong = self.characters.encode("ma")[0]
        first = jnp.where(batch["label"] == 3, wrong, targets[:, 0])
        targets = targets.at[:, 0].set(first)
        frames = jnp.repeat(targets, 2, axis=1).at[:, 1::4].set(self.characters.blank)
        real = jnp.arange(frames.shape[1]) < 2 * batch["target_length"][:, None]
        # Behind the last real frame stands what nobody should read.
        frames = jnp.where(real, frames, wrong)
        return 10.0 * jax.nn.one_hot(frames, self.characters.size), real


def test_greedy_decoding_is_its_definition():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 12, 4)).astype(np.float32)
    mask = np.arange(12) < rng.integers(0, 13, 50)[:, None]
    found = np.asarray(jax.jit(greedy, static_argnums=2)(logits, mask, 2))
    for row, real, ids in zip(logits, mask, found, strict=True):
        expected = [k for k, _ in itertools.groupby(row[real].argmax(-1).tolist()) if k != 2]
        assert ids[: len(expected)].tolist() == expected
        assert (ids[len(expected) :] == -1).all()


def test_error_rates_of_transcripts():
    spelt = preprocessing(characters=VOCABULARY, max_targets=4)
    reader = Reader(spelt.opened)
    make_ctc = functools.partial(make, "ctc", preprocessing=spelt, test=TEST, batch_size=16)
    found = make_ctc().run(reader, {})
    assert found == {"wer": pytest.approx(0.25), "cer": pytest.approx(0.125), "left_out": 0}
    assert make_ctc(mesh=make_mesh(data=4, fsdp=2)).run(reader, {}) == found
    assert make_ctc(test=dict(TEST, broken=2)).run(reader, {})["left_out"] == 1
    buckets = dataclasses.replace(spelt, bucket_samples=(1300, 1600))
    in_buckets = make_ctc(preprocessing=buckets)
    assert len(in_buckets._parts) == 2
    assert in_buckets.run(reader, {}) == found
    with pytest.raises(ConfigError, match="Wav2Vec2 does not transcribe"):
        make_ctc().run(encoder(), {})
    with pytest.raises(ConfigError, match=r"set preprocessing\.characters"):
        make("ctc", test=TEST)


def test_a_beam_finds_words_of_its_language_model(tmp_path):
    path = tmp_path / "words.arpa"
    path.write_text(ARPA)
    spelt = preprocessing(characters=VOCABULARY, max_targets=4)
    fields = dict(preprocessing=spelt, test=TEST, beam=dict(language_model=str(path), weight=0.5))
    try:
        import flashlight.lib.text.decoder.kenlm  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"\.beam: needs flashlight-text and kenlm"):
            make("ctc", **fields)
        pytest.skip("flashlight-text is not installed")
    found = make("ctc", **fields).run(Reader(spelt.opened), {})
    assert found["wer"] == pytest.approx(0.25)
    assert found["beam_wer"] == 0.0  # 'ma' is no word, and 'fa' more frequent than 'mi'
    bare = preprocessing(characters='{"<pad>": 0, "|": 1}')
    with pytest.raises(DataError, match="can spell none of the words"):
        make("ctc", **{**fields, "preprocessing": bare})
    with pytest.raises(DataError, match="cannot be read as an ARPA file"):
        make("ctc", **{**fields, "beam": dict(language_model=str(tmp_path / "none"))})
