"""Audio-MAE: the image of a waveform, and masked patches of it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.data import AudioPreprocessing
from encoders.encoder import Encoder
from encoders.errors import CheckpointError, ConfigError
from encoders.models.spectrogram_vit import SpectrogramViT
from encoders.objectives.masked_image import MaskedImage, MaskedImageDecoder
from tools.golden.inputs import sound

SIZES = {"width": 16, "depth": 1, "mlp_dim": 24, "num_heads": 2}
VIT = SpectrogramViT(**SIZES, max_frames=48, weight_init="mae")
LENGTH = np.array([5037, 1601], np.int32)
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "spectrogram.npz")


def batch(samples: int = 6000) -> dict:
    waveform = np.pad(sound(LENGTH[0]).astype(np.float32) / 32768, ((0, 0), (0, samples - 5037)))
    real = np.arange(samples) < LENGTH[:, None]
    waveform = np.where(real, waveform, np.float32(0.4))
    return {"waveform": waveform, "length": LENGTH, "row": np.arange(2, dtype=np.int32)}


def mask(given: dict) -> np.ndarray:
    return np.arange(given["waveform"].shape[1]) < given["length"][:, None]


def test_images_are_those_of_ast():
    given = batch()
    images = jax.jit(VIT.spectrogram)(given["waveform"], mask(given))
    assert images.shape == (2, 48, 128, 1)
    theirs = np.pad(GOLDEN["ast"], ((0, 16), (0, 0)))  # padded with zeros before it is normalised
    want = (theirs + 4.2677393) / (2 * 4.5689974)
    np.testing.assert_allclose(images[0, ..., 0], want, atol=1e-4)


def test_a_batch_is_its_clips():
    given = batch()
    init = jax.eval_shape(VIT.init, jax.random.key(0), given["waveform"])
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), init)

    @jax.jit
    def encode(waveform, real):
        out = VIT.apply(variables, waveform, mask=real, layers="all")
        features = VIT.features(waveform, real)
        again = VIT.apply(variables, waveform, features=features)
        return out, again, VIT.apply(variables, VIT.spectrogram(waveform, real))

    together, again, of_image = encode(given["waveform"], mask(given))
    alone, _, _ = encode(given["waveform"][1:, :1601], None)
    assert together.tokens.shape == (2, VIT.num_prefix + VIT.frames(6000), 16)
    np.testing.assert_allclose(together.tokens[1], alone.tokens[0], atol=1e-5)
    np.testing.assert_allclose(together.tokens, again.tokens, atol=1e-6)
    np.testing.assert_allclose(together.tokens, of_image.tokens, atol=1e-6)
    np.testing.assert_array_equal(together.mask.sum(1) - 1, [2 * 8, 8])  # of 30 and of 8 frames
    np.testing.assert_array_equal(again.mask, together.mask)


def test_letters_need_tokens_in_one_dimension():
    lengths = dict(max_samples=VIT.max_samples, samples_per_frame=VIT.stride)
    spelt = AudioPreprocessing(characters="letters", **lengths)
    with pytest.raises(ConfigError, match=r"characters: .* SpectrogramViT makes 8 of the same"):
        spelt.check(VIT)
    spelt.check(VIT.clone(patch_size=(16, 128)))


def test_masked_spectrograms():
    decoder = MaskedImageDecoder(width=16, depth=1, num_heads=2, parent=None)
    objective = MaskedImage(VIT, mask_ratio=0.8, decoder=decoder)
    given = batch()

    @jax.jit
    def run(key):
        rngs = {"params": key, "corrupt": key}
        variables = objective.init(rngs, given)
        rngs = {"corrupt": key}
        loss = lambda v: objective.apply(v, given, rngs=rngs).loss  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(variables)
        outcome = objective.apply(variables, given, rngs=rngs)
        pictures = objective.apply(variables, given, rngs=rngs, method="reconstruct")
        return value, gradients, outcome, pictures

    value, gradients, outcome, pictures = run(jax.random.key(0))
    assert np.isfinite(value)
    assert outcome.weight == 2 * 20  # of 24 patches 4 are seen
    assert pictures["prediction"].shape == (2, 48, 128, 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    # Padding is what it is, whatever the samples there are.
    assert objective.flops(6000) == objective.flops((48, 128))


def test_refusals(tmp_path):
    for format in ("hf", "timm"):
        with pytest.raises(CheckpointError, match="writes a ViT, and this is SpectrogramViT"):
            encoders.save(Encoder(VIT, {"params": {}}, None, {}), tmp_path / format, format=format)
    longest = jnp.zeros((1, VIT.max_samples))
    assert jax.eval_shape(VIT.spectrogram, longest).shape[1] == 48
    with pytest.raises(ConfigError, match="8080 samples make 49 frames, more than"):
        jax.eval_shape(VIT.spectrogram, jnp.pad(longest, ((0, 0), (0, 1))))
    with pytest.raises(ConfigError, match="the encoder hears 16000 samples per second"):
        AudioPreprocessing(sample_rate=8000).check(VIT)
    with pytest.raises(ConfigError, match="patches that overlap"):
        VIT.clone(patch_stride=10).features(jnp.zeros((1, 800)))
    with pytest.raises(ConfigError, match="has no vector that stands for hidden patches"):
        VIT(jnp.zeros((1, 800)), masked=np.zeros((1, 24), bool))


def test_512_tokens_of_ten_seconds():
    module = SpectrogramViT()
    assert module.frames(160000) == 512
    assert module.stride == 2560
