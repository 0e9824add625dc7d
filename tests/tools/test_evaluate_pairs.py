"""python -m tools.evaluate of two towers: zero-shot by flags, and preparation that must agree."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_evaluate import run, write_run

import encoders
from encoders.errors import ConfigError, DataError
from encoders.pair import PairEncoder
from tools import evaluate, search

SIZE = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
SOURCE = dict(name="sample", dataset="emoji", split="test", stop=0.05)


def get_config():
    config = ConfigDict()
    config.batch_size = 8
    config.duration = {"steps": 2}
    text = dict(tokenizer="sample:emoji", max_length=8, token_types=False, lowercase=True)
    image = dict(image_size=(8, 8), crop_fraction=1.0)
    config.preprocessing = dict(name="image_text", image=image, text=text)
    config.data = dict(source=SOURCE)
    config.model = dict(
        name="towers",
        image=dict(name="vit", **SIZE, patch_size=4),
        text=dict(name="clip_text", **SIZE, vocab_size=2048, max_length=8),
    )
    config.objective = dict(name="softmax_contrast")
    config.optimizer = dict(name="adamw", lr=1e-3, schedule=dict(name="constant"))
    config.ema = 0.9
    retrieval = dict(name="image_text_retrieval", test=SOURCE, batch_size=8, examples=2)
    config.evaluators = dict(retrieval=retrieval)
    config.hardware = dict(mesh=dict(data=1))
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "pair", get_config(), (2,))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name in ("red", "blue"):
        (root / name).mkdir()
        for number in range(2):
            Image.new("RGB", (9, 8), name).save(root / name / f"{number}.png")
    return root


def test_a_run_is_evaluated_as_in_training(workdir, capsys):
    [line] = run(capsys, "--workdir", workdir)
    assert {"image_to_text@1", "text_to_image@10", "chance_image_to_text@5"} <= set(line)
    assert (workdir / "pictures" / "retrieval_00000002.png").is_file()


def test_zero_shot_needs_no_section(workdir, photos, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("sky\nfire\n")
    (tmp_path / "templates.txt").write_text("{} flag\na {}\n")
    files = ["--classes", tmp_path / "names.txt", "--templates", tmp_path / "templates.txt"]
    zero_shot = ["--evaluator", "zero_shot", "--images", photos]
    [line] = run(capsys, "--workdir", workdir, *zero_shot, *files)
    assert line["chance"] == 0.5
    assert line["step"] == 2
    encoders.save(encoders.load(workdir), tmp_path / "saved")
    [again] = run(capsys, "--model", tmp_path / "saved", *zero_shot, *files)
    assert again["accuracy"] == line["accuracy"]


def test_a_run_loads_as_a_pair(workdir):
    pair = encoders.load(workdir)
    assert isinstance(pair, PairEncoder)
    assert pair.embed_text(["grinning face", "cat"]).shape == (2, 16)
    assert pair.preprocessing.text.lowercase


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ["--config.preprocessing.text.lowercase=False"],
            ConfigError,
            "would score wrongly: here lowercase False and not True",
        ),
        (
            ["--config.preprocessing.text.tokenizer=sample:peps"],
            ConfigError,
            "would score wrongly: here another tokenizer",
        ),
        (["--evaluator", "zero_shot", "--classes", "x"], ConfigError, "--images says what to"),
        (["--evaluator", "retrieval", "--images", "x"], ConfigError, "for --evaluator zero_shot"),
        (["--evaluator", "zero_shot", "--images", "nowhere"], DataError, "no directory 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(workdir, arguments, error, message):
    with pytest.raises(error, match=message):
        evaluate.main(["--workdir", str(workdir), *arguments])


def test_preparation_travels_with_other_weights(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["evaluators"]
    change = "--config.preprocessing.text.lowercase=False"
    with pytest.raises(ConfigError, match="that of --model travels with its weights"):
        evaluate.main(["--model", str(workdir), "--config", str(tmp_path / "config.json"), change])


def test_a_run_whose_images_shared_rows_is_used_with_a_row_for_each(photos, tmp_path, capsys):
    """Evaluation, search and embeddings: images at their own aspect ratio, one by one."""
    config = get_config()
    config.batch_size = 32
    config.preprocessing.image = dict(max_patches=6, patch_size=4)
    pack = dict(name="pack_patches", images=4, row_patches=20)
    config.data.transforms = (dict(name="tokenize"), pack)
    config.model.image.update(class_token=False, pool="map", position_grid=(2, 2))
    workdir = write_run(tmp_path / "packed", config, (2,))
    [line] = run(capsys, "--workdir", workdir)
    assert {"image_to_text@1", "chance_image_to_text@5"} <= set(line)
    query, output = photos / "red" / "0.png", tmp_path / "found.json"
    arguments = ["--corpus", photos, "--query", query, "--query", "cat", "--output", output]
    arguments += ["--model", workdir, "--sheet", tmp_path / "sheet.png"]
    assert search.main([str(argument) for argument in arguments]) == 0
    [[first, *_], _] = (result["found"] for result in json.loads(output.read_text())["results"])
    assert first["similarity"] == pytest.approx(1, abs=1e-5)
    pair = encoders.load(workdir)
    images = [np.full((9, 20, 3), 7, np.uint8), np.full((30, 8, 3), 9, np.uint8)]
    assert pair.embed_image(images).shape == (2, 16)
