"""Evaluators of whole objectives: classification and reconstruction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toys import PREPROCESSING, TEST, ToyClassifier, ToyEncoder, ToyFiller

from encoders.config import build
from encoders.data import SOURCES
from encoders.errors import ConfigError
from encoders.evaluation import EVALUATORS
from encoders.evaluation.reconstruction import GAP, grid
from encoders.parallel.mesh import make_mesh


def make(name, mesh=None, directory=None, **fields):
    context = {"preprocessing": PREPROCESSING, "mesh": mesh, "directory": directory}
    section = dict(name=name, test=TEST, batch_size=16, **fields)
    return build(EVALUATORS, section, "evaluators.x", **context)


@pytest.fixture(scope="module")
def data():
    source = build(SOURCES, TEST, "test")
    images = np.stack([source[i]["image"] for i in range(len(source))])
    return PREPROCESSING.normalize(images), np.array([source[i]["label"] for i in range(51)])


@pytest.fixture(scope="module")
def classifier(data):
    module = ToyClassifier(ToyEncoder(), num_classes=7)
    return module, module.init(jax.random.key(1), {"image": data[0][:1]})


@pytest.mark.parametrize("sizes", [None, dict(data=2, fsdp=4, tensor=1)])
def test_classification_is_that_of_the_logits(data, classifier, sizes):
    module, variables = classifier
    images, labels = data
    found = make("classification", None if sizes is None else make_mesh(**sizes)).run(
        module, variables
    )
    logits = np.asarray(module.apply(variables, images, method="logits"), np.float64)
    order = np.argsort(-logits, axis=1)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found == pytest.approx(
        {
            "accuracy": (order[:, 0] == labels).mean(),
            "top5": (order[:, :5] == labels[:, None]).any(1).mean(),
            "cross_entropy": -np.log(chance[np.arange(51), labels]).mean(),
        },
        rel=1e-5,
    )
    assert found["accuracy"] < found["top5"] < 1


def test_constant_logits_score_like_argmax(data, classifier):
    module, variables = classifier
    variables = jax.tree.map(jnp.zeros_like, variables)
    found = make("classification").run(module, variables)
    assert found["accuracy"] == pytest.approx((data[1] == 0).mean())
    assert found["cross_entropy"] == pytest.approx(np.log(7), rel=1e-6)


def test_an_evaluator_of_another_objective_says_so(classifier):
    filler = ToyFiller(ToyEncoder())
    with pytest.raises(ConfigError, match="ToyFiller has no logits"):
        make("classification").run(filler, {})
    with pytest.raises(ConfigError, match="ToyClassifier reconstructs nothing"):
        make("reconstruction").run(*classifier)


@pytest.mark.parametrize("sizes", [None, dict(data=4, fsdp=2, tensor=1)])
def test_reconstruction_measures_and_draws(data, tmp_path, sizes):
    module = ToyFiller(ToyEncoder())
    variables = {"params": {"grey": jnp.float32(0.3)}}
    mesh = None if sizes is None else make_mesh(**sizes)
    evaluator = make("reconstruction", mesh, tmp_path, examples=5)
    found = evaluator.run(module, variables, step=40)
    expected = np.square(data[0][:, 4:] - 0.3).mean()
    assert found == {"masked_mse": pytest.approx(expected, rel=1e-5)}

    picture = np.asarray(Image.open(tmp_path / "pictures" / "reconstruction_00000040.png"))
    side = 14 * 8  # tiles of 8 pixels, enlarged
    assert picture.shape == (3 * side + 2 * GAP, 5 * side + 4 * GAP, 3)
    tiles = [
        picture[row * (side + GAP) :][:side:14, :side:14, 0].astype(float) / 255 for row in range(3)
    ]
    original = data[0][0, :, :, 0] * 0.25 + 0.5
    np.testing.assert_allclose(tiles[0], original, atol=1 / 255)
    np.testing.assert_allclose(tiles[1][4:], 0.5, atol=1 / 255)
    np.testing.assert_allclose(tiles[2][4:], 0.3 * 0.25 + 0.5, atol=1 / 255)
    np.testing.assert_allclose(tiles[2][:4], original[:4], atol=1 / 255)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [
        "reconstruction_00000040.png"
    ]


def test_pictures_are_not_drawn_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("reconstruction").run(ToyFiller(ToyEncoder()), {"params": {"grey": jnp.zeros(())}})
    assert not list(tmp_path.iterdir())


def test_grid_keeps_colour_drops_alpha_and_survives_nan():
    tiles = np.zeros((1, 2, 200, 150, 4))
    tiles[0, 0, ..., 0], tiles[0, 1] = 1.0, np.nan
    picture = grid(tiles)
    assert picture.shape == (200, 304, 3)
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[0, 160].tolist() == [0, 0, 0]
