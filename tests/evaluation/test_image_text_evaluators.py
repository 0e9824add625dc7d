"""Zero-shot classification and retrieval by two towers that know three colours."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from text_toys import SPECIAL, WORDS, tokenizer

from encoders.config import build
from encoders.data import PREPROCESSING, Preprocessing, TextPreprocessing
from encoders.data.image_text import ImageTextPreprocessing
from encoders.errors import ConfigError, DataError
from encoders.evaluation import EVALUATORS
from encoders.evaluation.contact_sheet import contact_sheet
from encoders.evaluation.image_text_retrieval import _chance
from encoders.layers.pooling import unit
from encoders.parallel.mesh import make_mesh
from encoders.types import Encoded

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
IMAGE = Preprocessing(image_size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3, crop_fraction=1.0)
BOTH = ImageTextPreprocessing(TextPreprocessing(tokenizer(), 8, token_types=False), IMAGE)


class Mean(nn.Module):
    """An image as its mean colour, times a parameter."""

    modality = "image"

    @nn.compact
    def __call__(self, images, *, train=False, layers=()):
        scale = self.param("scale", nn.initializers.ones, (3,))
        tokens = scale * images.reshape(len(images), -1, 3)
        return Encoded(tokens, jnp.ones(tokens.shape[:2], bool), tokens.mean(1))


class Colours(nn.Module):
    """Images as their mean colour, texts as the sum of the colours that they name."""

    image: nn.Module
    modality = "image_text"

    def setup(self):
        table = np.full((len(SPECIAL + WORDS), 3), 1e-3, np.float32)
        for number, colour in enumerate(COLOURS.values()):
            table[len(SPECIAL) + number] = np.array(colour) / 255
        self.words = self.param("words", lambda key: jnp.asarray(table))

    def embed_image(self, images):
        return unit(self.image(images).pooled)

    def embed_text(self, ids, *, segments):
        return unit((self.words[ids] * (segments > 0)[..., None]).sum(1))

    def __call__(self, images, ids, *, segments):
        return self.embed_image(images), self.embed_text(ids, segments=segments)


@pytest.fixture(scope="module")
def towers():
    module = Colours(Mean())
    batch = BOTH.example_batch(1)
    images = BOTH.normalize(batch["image"])
    return module, module.init(jax.random.key(0), images, batch["ids"], segments=batch["segments"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image for each colour and label; the two captions of red, and a wrong one of green."""
    root = tmp_path_factory.mktemp("colours")
    texts = {"red": ["red cat", "very red"], "blue": "blue dog", "green": "blue bird"}
    rows = []
    for label, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (4, 4), colour).save(root / f"{name}.png")
        rows.append({"image": f"{name}.png", "text": texts[name], "label": label})
    rows.append({"image": "none.png", "text": "green", "label": 2})
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def make(name, folder, preprocessing=BOTH, mesh=None, directory=None, **fields):
    test = {"name": "pairs", "path": str(folder), "fields": ("label",)}
    context = {"preprocessing": preprocessing, "mesh": mesh, "directory": directory, "label": "x"}
    section = {"name": name, "test": test, "batch_size": 8, **fields}
    return build(EVALUATORS, section, "evaluators.x", **context)


# --- zero-shot ------------------------------------------------------------------------------------


def test_classes_are_found_by_their_names(towers, folder):
    found = make("zero_shot", folder, classes=("red", "blue", "green")).run(*towers)
    assert found == {"accuracy": 1.0, "top5": 1.0, "class_accuracy": 1.0, "chance": 1 / 3}
    wrong = make("zero_shot", folder, classes=("red", "green", "blue")).run(*towers)
    assert wrong["accuracy"] == pytest.approx(1 / 3)


def test_templates_are_averaged_and_scaled(towers, folder):
    evaluator = make(
        "zero_shot", folder, classes=("red", "blue", "green"), templates=("{}", "{} red", "a {}")
    )
    vectors = evaluator.class_vectors(*towers)
    texts = ["blue", "blue red", "a blue"]
    each = evaluator.embed_texts(*towers, texts)
    np.testing.assert_allclose(np.linalg.norm(each, axis=1), 1, atol=1e-5)
    mean = each.mean(0)
    np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-5)


def test_names_and_templates_come_from_files(towers, folder, tmp_path):
    (tmp_path / "names.txt").write_text("red\nblue\n\ngreen\n")
    (tmp_path / "templates.txt").write_text("very {}\n")
    files = {
        "classes": str(tmp_path / "names.txt"),
        "templates": str(tmp_path / "templates.txt"),
    }
    assert make("zero_shot", folder, **files).run(*towers)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ConfigError, "no class names; give some"),
        ({"classes": ()}, ConfigError, "classes: expected one or more"),
        ({"classes": ("a", " ")}, ConfigError, "classes: expected one or more, and none empty"),
        ({"classes": "nowhere.txt"}, DataError, "classes: cannot read 'nowhere.txt'"),
        ({"classes": ("a",), "templates": ()}, ConfigError, "templates: expected one or more"),
        ({"classes": ("a",), "templates": ("{}", "x")}, ConfigError, "for the class in each"),
    ],
)
def test_wrong_classes_and_templates(folder, fields, error, message):
    with pytest.raises(error, match=message):
        make("zero_shot", folder, **fields)


def test_labels_need_names(towers, folder):
    with pytest.raises(DataError, match="labels go from 0 to 2, and there are 2 names"):
        make("zero_shot", folder, classes=("red", "blue")).run(*towers)


def test_an_encoder_of_images_alone_is_refused(folder):
    with pytest.raises(ConfigError, match="needs an encoder of both"):
        make("zero_shot", folder, IMAGE, classes=("red",))


# --- retrieval ------------------------------------------------------------------------------------

# Nearest first: red finds its two; blue finds 'blue dog' and 'blue bird', of which the first is its
# own; green is as far from all of them. 'blue bird', which is green's, finds blue first.
EXPECTED = {
    "image_to_text@1": 2 / 3,
    "text_to_image@1": 3 / 4,
    "chance_image_to_text@1": 1 / 3,
    "chance_text_to_image@1": 1 / 3,
}


@pytest.mark.parametrize("devices", [None, 8])
def test_own_captions_and_images_are_counted(towers, folder, devices, tmp_path):
    mesh = devices and make_mesh()
    evaluator = make("image_text_retrieval", folder, mesh=mesh, k=(1, 3), directory=tmp_path)
    found = evaluator.run(*towers, step=3)
    for name, value in EXPECTED.items():
        assert found[name] == pytest.approx(value), name
    assert found["text_to_image@3"] == found["chance_text_to_image@3"] == 1
    picture = np.asarray(Image.open(tmp_path / "pictures" / "x_00000003.png"))
    assert picture.shape[2] == 3
    assert {tuple(c) for c in COLOURS.values()} <= {tuple(p) for p in picture.reshape(-1, 3)}


def test_only_the_first_captions(towers, folder):
    found = make("image_text_retrieval", folder, captions=1, k=(1,)).run(*towers)
    assert found["text_to_image@1"] == pytest.approx(2 / 3)
    assert found["chance_image_to_text@1"] == pytest.approx(1 / 3)


def test_chance_is_that_of_drawing_by_lot():
    sizes, rng = np.array([1, 2, 5]), np.random.default_rng(0)
    owners = np.repeat(np.arange(3), sizes)
    drawn = [rng.permutation(owners)[:3] for _ in range(4000)]
    expected = np.mean([[n in d for n in range(3)] for d in drawn])
    assert _chance(sizes, 8, 3) == pytest.approx(expected, abs=0.02)
    assert _chance(sizes, 8, 8) == 1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"k": ()}, ConfigError, "k: expected numbers from 1"),
        ({"captions": 0}, ConfigError, "captions: expected a number from 1, got 0"),
        ({"text": "title"}, DataError, "no example has a caption in field 'title'"),
    ],
)
def test_wrong_retrieval(towers, folder, fields, error, message):
    with pytest.raises(error, match=message):
        make("image_text_retrieval", folder, **fields).run(*towers)


# --- the rest -------------------------------------------------------------------------------------


def test_probes_measure_the_image_tower(towers, folder):
    train = {"name": "pairs", "path": str(folder), "fields": ("label",)}
    fields = {"train": train, "k": (1,), "baselines": ("random", "pixels")}
    found = make("knn", folder, **fields).run(*towers)
    assert found["accuracy"] == found["random"] == found["pixels"] == 1.0


def test_a_contact_sheet_frames_what_is_right():
    red = np.full((6, 12, 3), (200, 0, 0), np.uint8)
    sheet = contact_sheet([("a text that is longer than one line of the sheet", [(red, True)])])
    plain = contact_sheet([(red, [(red, False)])])
    assert sheet.dtype == np.uint8
    green = (sheet == (0, 140, 60)).all(-1)
    assert green.any()
    assert not (plain == (0, 140, 60)).all(-1).any()
    assert (plain == (200, 0, 0)).all(-1).sum() == 2 * 96 * 48


def test_preprocessing_is_in_the_table():
    assert PREPROCESSING["image_text"] is ImageTextPreprocessing
