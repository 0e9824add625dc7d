"""Probes against their definitions, on any mesh."""

import jax
import numpy as np
import optax
import pytest
import scipy.optimize
from toys import PREPROCESSING, TEST, TRAIN, ToyEncoder, init

from encoders.config import build
from encoders.errors import ConfigError, DataError
from encoders.evaluation import EVALUATORS, FeatureExtractor, knn
from encoders.evaluation.features import Labelled
from encoders.evaluation.few_shot import _ridge
from encoders.evaluation.logistic import LogisticRegression
from encoders.evaluation.probe import held_out, standardize
from encoders.parallel.mesh import make_mesh

SPLITS = dict(train=TRAIN, test=TEST, batch_size=64)


def make(name, **fields):
    context = {"preprocessing": PREPROCESSING, "mesh": fields.pop("mesh", None), "directory": None}
    return build(EVALUATORS, dict(name=name, **SPLITS, **fields), "evaluators.x", **context)


def clusters(rng, examples, classes=5, width=12, noise=1.0):
    centres = np.random.default_rng(0).normal(size=(classes, width))
    labels = rng.integers(0, classes, examples).astype(np.int32)
    features = centres[labels] + noise * rng.normal(size=(examples, width))
    return Labelled(features.astype(np.float32), labels)


# --- nearest neighbours -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [None, dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8, tensor=1)]
)
def test_neighbours_are_those_of_the_whole_matrix(sizes, monkeypatch):
    monkeypatch.setattr(knn, "BANK_CHUNK", 16)
    monkeypatch.setattr(knn, "QUERY_CHUNK", 32)
    rng = np.random.default_rng(1)
    train, test = clusters(rng, 333), clusters(rng, 75)
    mesh = None if sizes is None else make_mesh(**sizes)
    similarity, labels = knn.neighbours(train, test.features, 50, mesh)

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (test.features, train.features)]
    full = unit[0] @ unit[1].T
    order = np.argsort(-full, axis=1, kind="stable")[:, :50]
    np.testing.assert_allclose(similarity, np.take_along_axis(full, order, 1), atol=1e-5)
    assert (labels == train.labels[order]).mean() > 0.999  # near-ties may swap


def test_votes_are_weighted_by_similarity():
    similarity = np.array([[0.9, 0.5, 0.5], [0.9, 0.89, 0.89]], np.float32)
    labels = np.array([[1, 0, 0], [1, 0, 0]])
    voted = knn.vote(similarity, labels, (1, 3), 0.07, 3)
    np.testing.assert_array_equal(voted[1], [1, 1])
    np.testing.assert_array_equal(
        voted[3], [1, 0]
    )  # exp(.4 / .07) outvotes two, exp(.01 / .07) not


def test_knn_reports_every_k_and_the_first_as_headline():
    found = make("knn", k=(5, 1, 20)).run(ToyEncoder(), init(ToyEncoder()))
    assert set(found) == {"accuracy", "k1", "k5", "k20", "chance"}
    assert found["accuracy"] == found["k5"]
    with pytest.raises(ConfigError, match="300 neighbours of 200 training examples"):
        make("knn", k=(300,))


# --- linear probe -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [None, dict(data=2, fsdp=4, tensor=1)])
def test_logistic_regression_reaches_the_minimum(sizes):
    rng = np.random.default_rng(2)
    # Strongly correlated features: what makes plain L-BFGS slow.
    mixing = rng.normal(size=(12, 12)) * np.logspace(0, -3, 12)
    train = clusters(rng, 203)
    features = standardize(train.features @ mixing.astype(np.float32))[0]
    weights = (np.arange(203) % 3 > 0).astype(np.float32)
    l2, classes = 1e-3, 5

    def objective(flat):
        kernel, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
        logits = features.astype(np.float64) @ kernel + bias
        own = logits[np.arange(203), train.labels]
        losses = scipy.special.logsumexp(logits, axis=1) - own
        chance = np.exp(logits - scipy.special.logsumexp(logits, axis=1)[:, None])
        error = (chance - np.eye(classes)[train.labels]) * weights[:, None] / weights.sum()
        gradient = features.T.astype(np.float64) @ error + l2 * kernel
        value = (losses * weights).sum() / weights.sum() + l2 / 2 * (kernel**2).sum()
        return value, np.append(gradient, error.sum(0))

    reference = scipy.optimize.minimize(
        objective, np.zeros(13 * classes), jac=True, method="L-BFGS-B",
        options={"maxiter": 5000, "gtol": 1e-9, "ftol": 0},
    )  # fmt: skip
    mesh = None if sizes is None else make_mesh(**sizes)
    problem = LogisticRegression(features, train.labels, classes, mesh=mesh, tolerance=1e-5)
    found = problem.fit(l2, weights)
    assert found.iterations < 60
    np.testing.assert_allclose(found.loss, reference.fun, rtol=1e-5)
    np.testing.assert_allclose(found.weights, reference.x[:-classes].reshape(-1, 5), atol=5e-3)
    again = problem.fit(l2, weights, start=found)
    assert again.iterations < found.iterations / 3


def test_logistic_regression_in_chunks_is_the_same(monkeypatch):
    train = clusters(np.random.default_rng(3), 101)
    whole = LogisticRegression(train.features, train.labels, 5).fit(0.01)
    monkeypatch.setattr("encoders.evaluation.logistic.LOGITS_PER_CHUNK", 256)
    parts = LogisticRegression(train.features, train.labels, 5)
    assert parts._features.shape == (2, 51, 12)
    np.testing.assert_allclose(parts.fit(0.01).loss, whole.loss, rtol=1e-6)


def test_layers_are_mixed_by_what_they_say():
    rng = np.random.default_rng(4)
    said = clusters(rng, 300, noise=2.0)
    features = rng.normal(size=(300, 3, 12)).astype(np.float32)
    features[:, 1] = said.features
    [features] = standardize(features)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    alone = [LogisticRegression(features[:, i], said.labels, 5).fit(0.01) for i in range(3)]
    found = [
        LogisticRegression(features, said.labels, 5, mesh=mesh).fit(0.01, start=start)
        for mesh, start in ((None, None), (mesh, None))
    ]
    assert found[0].layers.sum() == pytest.approx(1, abs=1e-5)
    assert found[0].layers[1] > 0.8
    assert found[0].loss < min(one.loss for one in alone) + 1e-3
    np.testing.assert_allclose(found[1].layers, found[0].layers, atol=1e-2)
    mixed = np.einsum("l,nld->nd", found[0].layers, features)
    again = LogisticRegression(mixed, said.labels, 5).fit(0.01)  # with the mixture as it is
    assert again.loss == pytest.approx(found[0].loss, abs=1e-4)
    np.testing.assert_allclose(found[0].logits(features), again.logits(mixed), atol=0.05)


def test_linear_probe_beats_its_baseline_and_repeats_exactly():
    encoder = ToyEncoder()
    variables = init(encoder)
    fields = dict(seed=5, l2=(0.1, 0.01), max_iterations=40)
    probe = make("linear_probe", baselines=("pixels", "random"), **fields)
    first = probe.run(encoder, variables)
    assert set(first) == {
        "accuracy", "cross_entropy", "train_accuracy", "holdout_accuracy", "l2", "chance", "pixels",
        "random",
    }  # fmt: skip
    assert first["accuracy"] > 0.5  # chance is 0.25
    assert first["l2"] in probe.l2
    assert first["chance"] == pytest.approx(13 / 51)  # 51 examples of classes 0, 1, 2, 3, 0, ...
    assert probe.sizes == {"train": 200, "test": 51}
    assert make("linear_probe", **fields).run(encoder, variables) == {
        name: value for name, value in first.items() if name not in ("pixels", "random")
    }
    on_mesh = make(
        "linear_probe",
        mesh=make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2]),
        **fields,
    ).run(encoder, variables)
    assert on_mesh["accuracy"] == pytest.approx(first["accuracy"], abs=0.04)
    assert on_mesh["cross_entropy"] == pytest.approx(first["cross_entropy"], rel=0.02)


def test_baselines_are_measured_once(monkeypatch):
    encoder = ToyEncoder()
    probe = make("knn", k=(5,), baselines=("pixels", "random"))
    asked = []
    for name in ("pixels", "random"):
        method = getattr(FeatureExtractor, name)
        monkeypatch.setattr(
            FeatureExtractor,
            name,
            lambda *a, name=name, method=method: asked.append(name) or method(*a),
        )
    found = [probe.run(encoder, init(encoder)) for _ in range(2)]
    assert found[0] == found[1]
    assert sorted(asked) == ["pixels"] * 2 + ["random"] * 2  # train and test, once


def test_random_baseline_is_the_same_probe_on_random_weights():
    encoder = ToyEncoder()
    probe = make("knn", k=(5,), baselines=("random",), seed=0)
    random = init(encoder)  # jax.random.key(0), as seed 0
    other = {"params": {k: {"kernel": 0 * v["kernel"] + 1, "bias": v["bias"]} for k, v in
                        random["params"].items()}}  # fmt: skip
    assert probe.run(encoder, other)["random"] == probe.run(encoder, random)["accuracy"]


def test_held_out_part_is_stratified():
    labels = np.repeat(np.arange(4), (100, 50, 10, 2))
    held = held_out(labels, 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(labels[held]), [10, 5, 1, 1])
    assert (held == held_out(labels, 0.1, np.random.default_rng(0))).all()
    assert (held != held_out(labels, 0.1, np.random.default_rng(1))).any()
    with pytest.raises(ConfigError, match="between 0 and 1"):
        held_out(labels, 1.0, np.random.default_rng(0))


def test_standardize_uses_train_only_and_survives_constant_columns():
    train = np.array([[1.0, 7.1, 0.0], [3.0, 7.1, 0.0]], np.float32)
    test = np.array([[5.0, 8.0, 1.0]], np.float32)
    left, right = standardize(train, test)
    np.testing.assert_allclose(left, [[-1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(right, [[3, 0, 0]])


# --- few shots ----------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [6, 40])
def test_ridge_solves_the_normal_equations(examples):
    rng = np.random.default_rng(4)
    features = rng.normal(size=(examples, 9)).astype(np.float32)
    features -= features.mean(0)
    targets = rng.choice([-1.0, 1.0], (examples, 3)).astype(np.float32)
    l2 = np.array([0.25, 4.0], np.float32)
    kernels, bias = _ridge(features, targets, l2)
    np.testing.assert_allclose(bias, targets.mean(0), atol=1e-6)
    for kernel, penalty in zip(kernels, l2, strict=True):
        gram = features.T @ features + penalty * np.eye(9)
        expected = np.linalg.solve(gram, features.T @ (targets - targets.mean(0)))
        np.testing.assert_allclose(kernel, expected, atol=1e-4)


def test_few_shot_learns_with_the_shots():
    rng = np.random.default_rng(5)
    train, test = clusters(rng, 400, noise=2.0), clusters(rng, 300, noise=2.0)
    probe = make("few_shot", shots=(1, 20), draws=4)
    found = probe.score(train, test, 5)
    assert set(found) == {"accuracy", "shots1", "shots1_std", "shots20", "shots20_std"}
    assert found["accuracy"] == found["shots20"] > found["shots1"] + 0.1 > 0.3
    assert found == probe.score(train, test, 5)
    with pytest.raises(DataError, match="class 0 has"):
        make("few_shot", shots=(500,)).score(train, test, 5)


# --- bad input ----------------------------------------------------------------------------------


def test_bad_sections_are_named():
    with pytest.raises(ConfigError, match=r"evaluators\.x\.basselines: unknown field.*baselines"):
        make("knn", basselines=("pixels",))
    with pytest.raises(ConfigError, match="baselines"):
        make("knn", baselines=("pixel",))
    with pytest.raises(ConfigError, match=r"temperature"):
        make("knn", temperature=0.0)
    with pytest.raises(ConfigError, match=r"train\.name: unknown name 'synthetics'"):
        make("knn", k=(1,)).__class__(
            train=dict(name="synthetics"), test=TEST, preprocessing=PREPROCESSING
        )


def test_cross_entropy_is_in_nats():
    from encoders.evaluation.linear_probe import _cross_entropy

    logits = np.array([[2.0, 0.0], [1e4, 0.0]], np.float32)
    expected = optax.losses.softmax_cross_entropy_with_integer_labels(logits, np.array([0, 0]))
    assert _cross_entropy(logits, np.array([0, 0])) == pytest.approx(float(expected.mean()))
