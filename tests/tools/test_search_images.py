"""python -m tools.search across images and texts, tools.embed of two towers, and its map."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

import encoders
from encoders.config import build
from encoders.data import PREPROCESSING
from encoders.errors import CheckpointError, ConfigError, DataError
from encoders.models import MODELS
from encoders.pair import PairEncoder
from tools import embed, search
from tools.embedding_map import MOST, plane, spread

SIZE = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
COLOURS = ["red", "blue", "green", "white", "black"]


def save(directory, model, preprocessing, kind):
    module = build(MODELS, model, "model")
    prepared = build(PREPROCESSING, preprocessing, "preprocessing")
    example = prepared.example_batch(1)
    inputs = [prepared.normalize(example["image"]), *([example["ids"]] if "ids" in example else [])]
    variables = jax.jit(module.init)(jax.random.key(0), *inputs)
    encoder = kind(module, variables, prepared)
    encoders.save(encoder, directory)
    return str(directory)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two towers, and an encoder of images alone."""
    root = tmp_path_factory.mktemp("models")
    vit = dict(name="vit", **SIZE, patch_size=4)
    text = dict(name="clip_text", **SIZE, vocab_size=2048, max_length=8)
    image = dict(image_size=(8, 8), crop_fraction=1.0)
    words = dict(tokenizer="sample:emoji", max_length=8, token_types=False)
    towers = dict(name="towers", image=vit, text=text)
    both = dict(name="image_text", image=image, text=words)
    return {
        "pair": save(root / "pair", towers, both, PairEncoder),
        "vit": save(root / "vit", vit, dict(name="image", **image), encoders.Encoder),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images, a broken one, and captions in a file of its own."""
    root = tmp_path_factory.mktemp("images")
    for name in COLOURS:
        Image.new("RGB", (9, 8), name).save(root / f"{name}.png")
    (root / "broken.png").write_bytes(b"\x89PNG\r\n")
    return root


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "captions.txt"
    path.write_text("".join(f"a {name} flag\n" for name in COLOURS))
    return path


def run(model, corpus, tmp_path, *flags):
    output, sheet = tmp_path / "out.json", tmp_path / "sheet.png"
    arguments = ["--model", model, "--corpus", corpus, "--output", output, "--sheet", sheet, *flags]
    assert search.main([str(argument) for argument in arguments]) == 0
    return json.loads(output.read_text())


def test_texts_find_images(models, folder, tmp_path, capsys):
    queries = ["--query", "a red flag", "--query", "a cat"]
    found = run(models["pair"], folder, tmp_path, *queries, "--top", "3")
    pair = encoders.load(models["pair"])
    images = np.stack([np.asarray(Image.new("RGB", (8, 8), name)) for name in COLOURS])
    cosine = pair.embed_text(["a red flag"]) @ pair.embed_image(images).T
    best = [COLOURS[i] + ".png" for i in np.argsort(-cosine[0])[:3]]
    first = found["results"][0]["found"]
    assert [entry["name"].rpartition("/")[2] for entry in first] == best
    np.testing.assert_allclose(
        [e["similarity"] for e in first], -np.sort(-cosine[0])[:3], atol=1e-5
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    shown = {tuple(pixel) for pixel in sheet.reshape(-1, 3)}
    assert tuple(Image.new("RGB", (1, 1), best[0][:-4]).getpixel((0, 0))) in shown
    printed = capsys.readouterr().out
    assert "query: a cat" in printed
    assert f"wrote {tmp_path / 'sheet.png'}" in printed
    assert "1 image left out, such as" in printed


def test_captions_of_found_images_are_shown(models, tmp_path):
    corpus = pathlib.Path(encoders.__file__).parent / "data" / "samples" / "emoji"
    flags = ["--split", "test", "--query", "grinning", "--top", "1"]
    [found] = run(models["pair"], corpus, tmp_path, *flags)["results"][0]["found"]
    assert set(found) == {"name", "similarity", "text"}


@pytest.mark.parametrize("model", ["pair", "vit"])
def test_images_find_images(models, folder, tmp_path, model):
    query = folder / "green.png"
    found = run(models[model], folder, tmp_path, "--query", query)["results"][0]["found"]
    assert found[0]["name"] == str(query)
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(found) == 5


def test_images_find_texts(models, folder, captions, tmp_path):
    found = run(models["pair"], captions, tmp_path, "--query", folder / "red.png", "--top", "2")
    assert {entry["text"] for entry in found["results"][0]["found"]} <= {
        f"a {name} flag" for name in COLOURS
    }
    assert not (tmp_path / "sheet.png").exists()


def test_mistakes_are_one_sentence(models, folder, captions, tmp_path):
    def fails(error, message, model="pair", corpus=folder, flags=("--query", "cat")):
        with pytest.raises(error, match=message):
            run(models[model], corpus, tmp_path, *flags)

    fails(CheckpointError, "--query 'cat': is text, and a ViT encodes images only", model="vit")
    fails(DataError, "photo.png: cannot be read", flags=("--query", "photo.png"))
    broken = ("--query", folder / "broken.png")
    fails(DataError, "broken.png: not a readable image", flags=broken)
    fails(ConfigError, "--pairs: is for encoders of texts", flags=("--pairs",))
    fails(ConfigError, "--sheet x.jpg: expected", flags=("--query", "a", "--sheet", "x.jpg"))
    fails(DataError, "--corpus nowhere", corpus="nowhere")
    fails(CheckpointError, "which encodes no texts", "vit", captions)


def test_two_towers_embed_images_and_texts(models, folder, captions, tmp_path):
    pair = encoders.load(models["pair"])
    output, page = tmp_path / "v.npz", tmp_path / "map.html"
    arguments = ["--model", models["pair"], "--output", str(output), "--input"]
    embed.main([*arguments, str(folder), "--map", str(page)])
    with np.load(output) as file:
        assert file["features"].shape == (5, 16)
        np.testing.assert_allclose(np.linalg.norm(file["features"], axis=1), 1, atol=1e-5)
    embed.main([*arguments, str(captions)])
    with np.load(output) as file:
        expected = pair.embed_text(["a red flag", "a blue flag"])
        np.testing.assert_allclose(file["vectors"][:2], expected, atol=1e-5)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 5
    assert 'title="red.png"' in text
    assert not re.search(r"url\(|@import|https?://|<link|src=\"(?!data:)", text)
    with pytest.raises(ConfigError, match="two towers give one vector"):
        embed.main([*arguments, str(folder), "--tokens"])
    with pytest.raises(ConfigError, match="--map: is for images"):
        embed.main([*arguments, str(captions), "--map", str(page)])
    with pytest.raises(ConfigError, match=r"--map x.htm: expected a name that ends in \.html"):
        embed.main([*arguments, str(folder), "--map", "x.htm"])


def test_a_plane_keeps_what_is_near_near():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0]])
    points = plane(np.repeat(centres, 5, axis=0) + rng.normal(scale=0.1, size=(15, 4)))
    assert points.shape == (15, 2)
    assert points.min() == 0
    assert points.max() == 1
    groups = points.reshape(3, 5, 2)
    assert np.ptp(groups, axis=1).max() < 0.2
    assert np.abs(groups.mean(1)[0] - groups.mean(1)[1]).max() > 0.5
    assert np.isfinite(plane(np.ones((4, 3)))).all()
    assert len(spread(MOST * 3)) == MOST
    with pytest.raises(DataError, match="three images or more, got 2"):
        plane(np.ones((2, 3)))
