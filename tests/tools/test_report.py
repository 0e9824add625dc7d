"""The report of any run is one page that needs nothing else and says what the run's files say."""

import html.parser
import json
import math
import re
import typing
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from encoders.errors import ConfigError
from encoders.evaluation import EVALUATORS
from encoders.evaluation.probe import Probe
from encoders.training.metrics import MetricWriter, write_facts, write_status
from tools.report import __main__ as report
from tools.report import charts, runs

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def sample(split):
    return {"name": "sample", "dataset": "fashion_mnist", "split": split}


CONFIG = {
    "batch_size": 32,
    "model": {"name": "vit", "variant": "S/16"},
    "objective": {"name": "masked_image", "mask_ratio": 0.75},
    "data": {"source": sample("train"), "transforms": [{"name": "random_flip"}]},
    "evaluators": {
        "recon": {"name": "reconstruction", "test": sample("test")},
        "probe": {"name": "linear_probe", "train": sample("train"), "test": sample("test")},
    },
}


def write_run(directory, *, probe=0.8, config=None, evaluators=True, points=30):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    write_facts(
        directory, first_step=0, parameters=1234567, flops_per_example=2.5e9, batch_size=32,
        examples_per_epoch=960, evaluators={"probe": {"train": 960, "test": 96}},
    )  # fmt: skip
    with MetricWriter(directory, tensorboard=False) as writer:
        for index in range(1, points + 1):
            metrics = {
                "train/loss": math.nan if index == 7 else 1 / index,
                "train/lr": 1e-3 / index,
                "train/grad_norm": 0.5,
                "train/examples_per_second": 100.0 + index,
                "train/data_wait": 0.25,
                "train/corrupt_examples": 3,
                "train/odd_metric": index,
            }
            writer.write(10 * index, metrics)
            if evaluators and index % 10 == 0:
                found = {
                    "accuracy": probe,
                    "pixels": 0.7,
                    "random": 0.55,
                    "chance": 0.1,
                    "l2": 0.01,
                }
                writer.write(10 * index, {f"eval/probe/{k}": v for k, v in found.items()})
                writer.write(10 * index, {"eval/recon/masked_mse": 0.5 / index})
    write_status(directory, "finished", 10 * points, 10 * points)
    if evaluators:
        (directory / "pictures").mkdir()
        for step in (100, 200, 300):
            shade = np.full((6, 8, 3), step // 2, np.uint8)
            Image.fromarray(shade).save(directory / "pictures" / f"recon_{step:08d}.png")
    return directory


def build(*arguments):
    assert report.main([str(argument) for argument in arguments]) == 0


def read(path):
    text = path.read_text()
    return text, Page(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = write_run(tmp_path_factory.mktemp("runs") / "first <run>")
    build("--workdir", directory)
    return directory


def test_evaluators_and_baselines_have_names():
    baselines, _ = typing.get_args(typing.get_type_hints(Probe)["baselines"])
    assert set(typing.get_args(baselines)) <= set(runs.BASELINES)
    assert set(EVALUATORS) <= set(runs.KINDS)


def test_the_page_needs_nothing_else(run):
    text, page = read(run / "report.html")
    assert "<script" not in text
    assert not re.search(r"url\(|@import|https?://", text)
    loaded = [a.get("src") or a.get("href") for _, a in page.tags if {"src", "href"} & set(a)]
    assert len(loaded) == 3
    assert all(source.startswith("data:image/png;base64,") for source in loaded)


def test_the_page_says_what_the_files_say(run):
    _, page = read(run / "report.html")
    for words in (
        "first <run>",  # escaped in the source, whole to the reader
        "finished",
        "vit S/16 · masked_image · fashion_mnist train",
        "300 of 300",
        "Linear probe (probe) at step 300: 80.0% , +10.0 points against raw pixels and "
        "+25.0 points against random weights of the same architecture",
        "fitted to fashion_mnist train (960 examples), tested on fashion_mnist test (96 examples)",
        "chance is 10%",
        "80.00% 70.00% 55.00% +25.00 10.00%",
        "Reconstruction (recon): masked mse",
        "original masked prediction",
        "Gradient norm",
        "odd metric",
        "Parameters 1,234,567",
        "FLOPs per example 2.5 GFLOPs",
        "Examples seen 9,600 (10 epochs of 960)",
        "Corrupt examples 3 replaced",
        "Data wait 25.0%",
        "no data-sheet peak",
        "objective name masked_image mask_ratio 0.75",
        "transforms[0].name random_flip",
    ):
        assert words in page.text, words


def test_every_chart_is_valid_and_inside_its_frame(run):
    text, _ = read(run / "report.html")
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) >= 8
    for chart in drawn:
        root = xml.etree.ElementTree.fromstring(chart)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert "nan" not in chart
        for path in root.iter("path"):
            numbers = np.array(re.findall(r"-?[\d.]+", path.attrib["d"]), float).reshape(-1, 2)
            assert (numbers >= 0).all()
            assert (numbers <= (width, height)).all()


def test_a_run_that_has_just_begun_and_one_without_pictures_have_reports(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(CONFIG))
    build("--workdir", bare)
    assert "unknown" in read(bare / "report.html")[1].text

    objective = {"name": "classification", "num_classes": 5}
    evaluators = {"validation": {"name": "classification", "test": sample("test")}}
    other = write_run(
        tmp_path / "labels", evaluators=False,
        config={"objective": objective, "evaluators": evaluators},
    )  # fmt: skip
    with MetricWriter(other, tensorboard=False) as writer:
        writer.write(300, {"eval/validation/accuracy": 0.61, "eval/validation/top5": 0.9})
    write_status(other, "failed", message="step 301: loss <nan>")
    build("--workdir", other, "--output", tmp_path / "elsewhere.html")
    _, page = read(tmp_path / "elsewhere.html")
    assert not (other / "report.html").exists()
    assert "step 301: loss <nan>" in page.text
    assert "61.00% 20.00%" in page.text  # accuracy and chance
    assert "Reconstructions" not in page.text
    assert "Raw pixels" not in page.text


def test_retrieval_is_held_against_chance(tmp_path):
    evaluators = {"retrieval": {"name": "image_text_retrieval", "test": sample("test")}}
    directory = write_run(tmp_path / "pair", evaluators=False, config={"evaluators": evaluators})
    with MetricWriter(directory, tensorboard=False) as writer:
        for step, value in ((100, 0.1), (300, 0.4)):
            found = {"image_to_text@1": value, "text_to_image@1": value / 2}
            found |= {"chance_image_to_text@1": 0.01, "chance_text_to_image@1": 0.02}
            writer.write(step, {f"eval/retrieval/{name}": v for name, v in found.items()})
    (directory / "pictures").mkdir()
    sheet = np.zeros((4, 4, 3), np.uint8)
    Image.fromarray(sheet).save(directory / "pictures" / "retrieval_00000300.png")
    build("--workdir", directory)
    text, page = read(directory / "report.html")
    assert "image to text R@1 is 40% , 40.0 times chance" in page.text
    assert "text to image R@1 is 20% , 10.0 times chance" in page.text
    assert "Image to text, chance 1.00%" in page.text
    assert "Captions and the images they find" in page.text
    assert "Reconstructions" not in page.text
    assert "masked prediction" not in page.text
    assert text.count("data:image/png;base64,") == 1


def test_runs_are_compared(run, tmp_path):
    other = write_run(tmp_path / "second", probe=0.75, config={"batch_size": 64})
    build("--workdir", run, "--compare", other, "--output", tmp_path / "both.html")
    text, page = read(tmp_path / "both.html")
    assert "Differs in first <run> second batch_size 32 64" in page.text
    assert "75.00%" in page.text
    [loss] = re.findall(r'<svg[^>]*aria-label="Loss".*?</svg>', text, re.DOTALL)
    assert loss.count("<path") == 2
    assert set(re.findall(r'<path[^>]*stroke="([^"]*)"', loss)) == set(charts.COLORS[:2])


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no run"):
        report.main(["--workdir", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"--workdri.*Did you mean '--workdir'"):
        report.main(["--workdri", "x", "--workdir", "y"])
    with pytest.raises(ConfigError, match="at most 5 runs"):
        report.main(["--workdir", "x", "--compare", *"abcdef"])


# --- charts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 47, [0, 10, 20, 30, 40, 50]),
        (0.43, 0.46, [0.43, 0.44, 0.45, 0.46]),
        (-3, 3, [-4, -2, 0, 2, 4]),
        (2, 2, [2, 2.5, 3, 3.5, 4]),
    ],
)
def test_ticks_are_round_and_cover(low, high, expected):
    assert charts.nice_ticks(low, high, 5) == pytest.approx(expected)


def test_long_curves_are_averaged_within_their_range():
    y = np.ones(10_000)
    y[5000] = 26.0
    drawn = charts.line_chart("t", [charts.Line("a", range(10_000), y, "#123456")])
    [path] = re.findall(r'<path d="([^"]*)"', drawn)
    assert path.count("L") == charts.MAX_POINTS - 1
    assert "<polygon" in drawn
    assert "30" in re.findall(r">([\d.]+)</text>", drawn)  # the axis covers the spike


def test_missing_values_interrupt_a_line():
    y = [1.0, 2.0, math.nan, 3.0, 2.0]
    drawn = charts.line_chart("t", [charts.Line("a", range(5), y, "#123456", dashed=True)])
    [path] = re.findall(r'<path d="([^"]*)"', drawn)
    assert [path.count(letter) for letter in "ML"] == [2, 2]


def test_wide_ranges_get_a_log_axis():
    drawn = charts.line_chart("t", [charts.Line("a", [0, 1, 2], [1e-3, 1.0, 50.0], "#123456")])
    assert re.findall(r'class="tick end">([^<]*)<', drawn) == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
    ]


def test_names_are_escaped():
    drawn = charts.bar_chart("a<b", [charts.Bar("<i>", 0.5, "#123456")], reference=("x&y", 0.1))
    root = xml.etree.ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter("text")]
    assert {"a<b", "<i>", "x&y 10%", "50.0%"} <= set(texts)
