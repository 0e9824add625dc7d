"""Any evaluator on any checkpoint, alone, with the numbers it would have in training."""

import itertools
import json

import jax
import numpy as np
import pytest
import tokenizers
from ml_collections import ConfigDict

import encoders
from encoders.checkpoints.store import CheckpointStore
from encoders.config import build, to_json
from encoders.data import SOURCES
from encoders.errors import CheckpointError, ConfigError, DataError
from encoders.training.experiment import Experiment
from tools import evaluate

SOURCE = dict(name="synthetic", image_size=(16, 16), channels=1, num_classes=4, num_examples=48)


def get_config(objective):
    config = ConfigDict()
    config.batch_size = 16
    config.duration = {"steps": 4}
    config.preprocessing = dict(name="image", image_size=(16, 16), channels=1, crop_fraction=1.0)
    config.data = dict(source=SOURCE)
    config.model = dict(name="vit", width=32, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    config.objective = objective
    config.optimizer = dict(name="adamw", lr=1e-3, schedule=dict(name="constant"))
    config.ema = 0.9
    knn = dict(name="knn", train=SOURCE, test={**SOURCE, "seed": 1}, k=(3,), batch_size=16)
    config.evaluators = dict(knn=dict(knn, every={"steps": 2}), last=dict(knn, feature="mean"))
    # Of a machine that this is not.
    config.hardware = dict(mesh=dict(data=64), fsdp_min_size=64)
    return config


def write_run(directory, config, steps):
    """A run with random weights, and an average that differs from them."""
    here = ConfigDict(config)
    here.hardware = dict(fsdp_min_size=64)
    experiment = Experiment(here)
    directory.mkdir()
    (directory / "config.json").write_text(to_json(config))
    with CheckpointStore(directory / "checkpoints", keep_last=9) as store:
        state = experiment.create_state()
        for step in steps:
            state = state.replace(ema=jax.tree.map(lambda x: 2 * x, state.params))
            metadata = {**experiment.metadata(step), "config": json.loads(to_json(config))}
            store.save(step, state, metadata, wait=True)
    return directory


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    config = get_config(dict(name="classification", num_classes=4, head_init=0.1))
    config.evaluators.validation = dict(name="classification", test=SOURCE, batch_size=16)
    return write_run(tmp_path_factory.mktemp("runs") / "labels", config, (2, 4))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    decoder = dict(width=16, depth=1, num_heads=2)
    config = get_config(dict(name="masked_image", decoder=decoder))
    config.evaluators = dict(filled=dict(name="reconstruction", test=SOURCE, batch_size=16))
    return write_run(tmp_path_factory.mktemp("runs") / "mae", config, (4,))


def run(capsys, *arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_all_evaluators_of_the_newest_checkpoint(classifier, capsys):
    lines = run(capsys, "--workdir", classifier)
    assert [line["evaluator"] for line in lines] == ["knn", "last", "validation"]
    assert {line["step"] for line in lines} == {4}
    assert set(lines[0]) == {"evaluator", "step", "seconds", "accuracy", "k3", "chance"}

    # The last one by hand, from the average that the run kept.
    encoder = encoders.load(classifier / "checkpoints" / "4")
    data = build(SOURCES, SOURCE, "test")
    pooled = encoder(np.stack([data[i]["image"] for i in range(48)])).pooled
    labels = np.array([data[i]["label"] for i in range(48)])
    head = encoder.heads["head"]
    logits = pooled @ head["kernel"] + head["bias"]
    assert lines[2]["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    own = np.asarray(jax.nn.log_softmax(logits))[np.arange(48), labels]
    assert lines[2]["cross_entropy"] == pytest.approx(-own.mean(), rel=1e-5)


def test_one_evaluator_of_an_older_checkpoint_with_another_field(classifier, capsys):
    [line] = run(
        capsys, "--workdir", classifier, "--evaluator", "knn", "--step", 2,
        "--config.evaluators.knn.k=(5, 1)", "--config.hardware.mesh.data=4",
    )  # fmt: skip
    assert (line["evaluator"], line["step"]) == ("knn", 2)
    assert {"k5", "k1"} <= set(line)


def test_pictures_of_a_run_go_to_it(autoencoder, capsys):
    [line] = run(capsys, "--workdir", autoencoder)
    assert line["masked_mse"] > 0
    assert (autoencoder / "pictures" / "filled_00000004.png").exists()


def test_a_directory_of_another_project(classifier, autoencoder, tmp_path, capsys):
    encoder = encoders.load(classifier)
    encoders.save(encoder, tmp_path / "hf", format="hf")
    config = classifier / "config.json"
    first = run(capsys, "--workdir", classifier, "--evaluator", "knn")[0]
    [line] = run(capsys, "--model", tmp_path / "hf", "--config", config, "--evaluator", "knn")
    assert line["step"] is None
    assert line["accuracy"] == pytest.approx(first["accuracy"], abs=0.03)
    with pytest.raises(ConfigError, match=r"evaluators\.validation: measures an objective"):
        evaluate.main(["--model", str(tmp_path / "hf"), "--config", str(config)])

    encoders.save(encoder, tmp_path / "native", heads=True)
    arguments = ["--config", config, "--evaluator", "validation"]
    [with_head] = run(capsys, "--model", tmp_path / "native", *arguments)
    [in_run] = run(capsys, "--workdir", classifier, "--evaluator", "validation")
    assert with_head["cross_entropy"] == pytest.approx(in_run["cross_entropy"], rel=1e-5)


def test_mistakes_are_named(classifier, tmp_path):
    where = ["--workdir", str(classifier)]
    for arguments, kind, message in (
        ([*where, "--evaluator", "knnn"], ConfigError, "unknown 'knnn'. Did you mean 'knn'"),
        ([*where, "--step", "3"], CheckpointError, "no checkpoint of step 3. Steps: 2, 4"),
        ([*where, "--config.evaluators.knn.kk=1"], ConfigError, "knn.kk: unknown field"),
        ([*where, "--config.evaluators.kn.k=1"], ConfigError, "evaluators.kn: unknown field"),
        (["--workdir", str(tmp_path)], ConfigError, "there is no run"),
        (["--model", str(tmp_path)], ConfigError, "--model needs --config"),
        ([*where, "--stp", "3"], ConfigError, "unknown argument '--stp'. Did you mean '--step'"),
        ([], ConfigError, "--workdir --model is required"),
    ):
        with pytest.raises(kind) as caught:
            evaluate.main(arguments)
        assert message in str(caught.value)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(name="text", path=str(path))


def test_a_run_on_texts(tmp_path, capsys):
    words = ["cat", "dog", "red", "blue", "runs", "sleeps", "very", "not"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(vocabulary)}, "[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(vocabulary[:5])
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 6)) for _ in range(40)]
    rows = [{"text": text, "label": int("cat" in text)} for text in texts]
    labelled = write_lines(tmp_path / "labelled.jsonl", rows)
    pairs = [
        {"text": a, "other": b, "score": n} for n, (a, b) in enumerate(itertools.pairwise(texts))
    ]
    scored = write_lines(tmp_path / "scored.jsonl", pairs)

    config = get_config(dict(name="masked_language"))
    config.preprocessing = dict(name="text", tokenizer=tokenizer.to_str(), max_length=12)
    config.data = dict(source=labelled, transforms=(dict(name="tokenize"),))
    small = dict(width=8, depth=1, num_heads=2, mlp_dim=8, max_length=12)
    config.model = dict(name="bert", vocab_size=len(vocabulary), **small)
    config.evaluators = dict(
        knn=dict(
            name="knn", train=labelled, test=labelled, k=(3,), batch_size=16,
            baselines=("bag_of_words", "random"),
        ),
        masked=dict(name="masked_accuracy", test=labelled, batch_size=16),
        similar=dict(name="sts", test=scored, batch_size=16, feature="mean"),
    )  # fmt: skip
    workdir = write_run(tmp_path / "run", config, (4,))
    found = {line["evaluator"]: line for line in run(capsys, "--workdir", workdir)}
    assert {"accuracy", "chance", "bag_of_words", "random"} <= set(found["knn"])
    assert found["masked"]["loss"] > 0
    assert {"spearman", "pearson"} <= set(found["similar"])
    with pytest.raises(DataError, match=r"evaluators\.masked\.train: its examples have no 'label'"):
        evaluate.main(
            [
                "--workdir", str(workdir), "--evaluator", "masked",
                "--config.evaluators.masked="
                + repr(dict(name="fine_tuning", train=scored, test=scored, task="classification")),
            ]
        )  # fmt: skip
