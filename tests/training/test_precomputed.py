"""LiT from vectors that were computed before equals LiT with the locked tower in the run."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import encoders
from encoders.config import build
from encoders.data import PREPROCESSING, SOURCES
from encoders.data.paths import SAMPLES
from encoders.data.sources import CorruptExample
from encoders.encoder import Encoder
from encoders.errors import DataError
from encoders.models import MODELS
from encoders.training.experiment import Experiment
from encoders.training.loop import train
from tools import embed

EMOJI = dict(name="array_record", path=str(SAMPLES / "emoji"), split="test", text_field="text")
IMAGE = dict(image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0)
VIT = dict(name="vit", width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of an image encoder, and vectors.npz of the emoji by it."""
    directory = tmp_path_factory.mktemp("lit")
    module = build(MODELS, VIT, "model")
    images = np.zeros((1, 16, 16, 3), np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    preprocessing = build(PREPROCESSING, dict(IMAGE, name="image"), "preprocessing")
    encoders.save(Encoder(module, variables, preprocessing, {}, None, {}), directory / "vit")
    arguments = ["--model", directory / "vit", "--input", EMOJI["path"], "--split", "test"]
    assert embed.main([*map(str, arguments), "--output", str(directory / "v.npz")]) == 0
    return directory


def config(folder, vectors):
    text = dict(name="clip_text", width=16, depth=1, mlp_dim=32, num_heads=2)
    source, image, tower = EMOJI, IMAGE, VIT
    if vectors:
        source = dict(name="embedded", source=EMOJI, vectors=str(folder / "v.npz"))
        image, tower = dict(IMAGE, vector_size=16), dict(name="precomputed", width=16)
    settings = ConfigDict(
        dict(
            seed=0,
            batch_size=16,
            duration={"steps": 2},
            preprocessing=dict(
                name="image_text",
                image=image,
                text=dict(tokenizer="sample:emoji/tokenizer.json", max_length=8, token_types=False),
            ),
            data=dict(
                source=source,
                transforms=(() if vectors else (dict(name="resize"),)) + (dict(name="tokenize"),),
                threads=1,
                processes=0,
            ),
            model=dict(
                name="towers",
                image=tower,
                text=dict(text, vocab_size=2048, max_length=8),
                embedding_dim=12,
                image_projection="linear",
                text_projection="linear",
                locked=() if vectors else ("image",),
            ),
            objective=dict(name="softmax_contrast"),
            optimizer=dict(name="sgd", lr=0.1, schedule=dict(name="constant")),
            evaluators=dict(
                held_out=dict(
                    name="image_text_retrieval", test=source, captions=1, batch_size=64, examples=2
                )
            ),
            log=dict(every={"steps": 1}, tensorboard=False),
        )
    )
    if not vectors:
        settings.init_from = dict(
            path=str(folder / "vit"),
            load=((r"encoder/image/(.*)", r"encoder/\1"),),
            fresh=(r"encoder/(text|image_projection|text_projection)/.*", r"encoder/logit_.*"),
        )
    return settings


def test_training_from_vectors_is_training_with_the_tower(folder, tmp_path):
    results, pairs = [], []
    for vectors in (False, True):
        workdir = tmp_path / str(vectors)
        experiment = Experiment(config(folder, vectors), devices=jax.devices()[:2])
        results.append(train(experiment, workdir))
        pairs.append(encoders.load(workdir))
    live, before = (dict(pair.variables["params"]) for pair in pairs)
    del live["image"]
    chex.assert_trees_all_close(before, live, atol=1e-5)
    assert results[1]["train/loss"] == pytest.approx(results[0]["train/loss"], abs=1e-5)
    found = [result["eval/held_out/image_to_text@10"] for result in results]
    assert found[0] == pytest.approx(found[1], abs=0.01)
    assert list((tmp_path / "True").rglob("*.png"))  # of the images, not of vectors
    with np.load(folder / "v.npz") as file:
        vectors = file["features"][:3]
    assert pairs[1].embed_image(vectors).shape == (3, 12)
    with pytest.raises(DataError, match=r"expected vectors \[B, 16\], got \(3, 8\)"):
        pairs[1].embed_image(vectors[:, :8])


def test_vectors_of_other_images_are_refused(folder, tmp_path):
    def opened(**fields):
        section = dict(name="embedded", source=EMOJI, vectors=str(folder / "v.npz"))
        return build(SOURCES, section | fields, "data.source")

    with pytest.raises(DataError, match=r"none of the images of .* is in data\.source\.source"):
        opened(source=dict(EMOJI, split="train"))
    with pytest.raises(DataError, match="cannot be read"):
        opened(vectors=str(tmp_path / "no.npz"))
    with np.load(folder / "v.npz") as file:
        arrays = dict(file)
    some = {name: arrays[name][1:] for name in ("features", "names")}
    np.savez(tmp_path / "some.npz", **some)
    source = opened(vectors=str(tmp_path / "some.npz"))
    with pytest.raises(CorruptExample, match="no vector in"):
        source[0]
    np.testing.assert_array_equal(source[1]["image"], arrays["features"][1])
    assert dataclasses.asdict(source)["vectors"].endswith("some.npz")
