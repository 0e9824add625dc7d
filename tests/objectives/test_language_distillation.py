"""DistilBERT's three losses by their formulas, and a student that starts from its teacher."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.checkpoints.partial import load_partially
from encoders.data import PREPROCESSING
from encoders.errors import ConfigError
from encoders.objectives.distillation import DistilledLanguage
from encoders.objectives.masked_language import MaskedLanguage
from encoders.training.experiment import build_objective
from tests.objectives.pretraining import ENCODER, LENGTH, VOCABULARY, batch, parameters

TEACHER = MaskedLanguage(ENCODER.clone(depth=2), vocabulary=VOCABULARY)
STUDENT = DistilledLanguage(ENCODER, vocabulary=VOCABULARY, teacher=TEACHER)


def variables(module=STUDENT):
    return {"params": parameters(module), "teacher": {"params": parameters(TEACHER)}}


@functools.cache
def results():
    """What it returns, what it hid, and what both networks make of that."""

    def run(student, batch):
        corrupted = student.corrupt(batch)
        encoded = student.encode(batch, corrupted.ids)
        taught = student._taught(batch, corrupted, None)
        outcome = student.loss(batch, corrupted, train=True)
        return outcome, corrupted, (encoded.tokens, student.scores(encoded)), taught

    compiled = jax.jit(lambda given: STUDENT.apply(variables(), given, method=run))
    return jax.tree.map(np.asarray, compiled(batch()))


def test_three_losses():
    outcome, corrupted, (tokens, scores), (goal_tokens, goals) = results()
    real = batch()["segments"] > 0

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    goal, found = log_softmax(goals / 2), log_softmax(scores / 2)
    soft = 4 * (np.exp(goal) * (goal - found)).sum(-1)
    lengths = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(goal_tokens, axis=-1)
    cosine = 1 - (tokens * goal_tokens).sum(-1) / lengths
    row = np.arange(len(scores))[:, None]
    losses = -log_softmax(scores)[row, corrupted.places, corrupted.labels] * corrupted.weights
    means = losses.sum(-1) / np.maximum(corrupted.weights.sum(-1), 1)
    total = 5 * soft[real].sum() + 2 * (real.sum(-1) * means).sum() + cosine[real].sum()
    np.testing.assert_allclose(outcome.loss, total, rtol=1e-5)
    assert outcome.weight == real.sum()
    for name, expected, weight in (
        ("soft_loss", soft[real].sum(), real.sum()),
        ("cosine_loss", cosine[real].sum(), real.sum()),
        ("token_loss", losses.sum(), corrupted.weights.sum()),
    ):
        np.testing.assert_allclose(outcome.metrics[name], (expected, weight), rtol=1e-5)


def test_a_batch_is_the_sum_of_its_parts_and_evaluation_needs_no_teacher():
    hidden = STUDENT.clone(soft_on="hidden")

    @jax.jit
    def run(batch):
        key = {"corrupt": jax.random.key(3)}
        taught = hidden.apply(variables(), batch, train=True, rngs=key)
        return taught, hidden.apply({"params": parameters(STUDENT)}, batch)

    first = np.arange(8) < 5
    parts = [run({**batch(), "valid": valid}) for valid in (first, ~first)]
    whole = run({**batch(), "valid": np.ones(8, bool)})
    chex.assert_trees_all_close(jax.tree.map(jnp.add, *parts), whole, rtol=1e-5)
    assert whole[0].metrics["soft_loss"][1] == whole[0].metrics["token_loss"][1]
    assert set(whole[1].metrics) == {"accuracy"}


def test_the_student_starts_from_every_other_layer_of_its_teacher():
    rng = np.random.default_rng(0)
    deep = MaskedLanguage(ENCODER.clone(depth=4), vocabulary=VOCABULARY)
    target = MaskedLanguage(ENCODER.clone(depth=2, scan=True), vocabulary=VOCABULARY)
    source, fresh = (
        jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype("f4"),
            jax.eval_shape(module.init, jax.random.key(0), batch())["params"],
        )
        for module in (deep, target)
    )
    rules = [
        *((rf"encoder/blocks_{i}/(.*)", rf"encoder/blocks_{2 * i}/\1") for i in range(2)),
        ("encoder/(embeddings|projection)/.*", True),
        ("head/.*", True),
    ]
    found, _ = load_partially(fresh, source, rules)
    for layer in (0, 1):
        chex.assert_trees_all_equal(
            jax.tree.map(lambda x, i=layer: x[i], found["encoder"]["blocks"]),
            source["encoder"][f"blocks_{2 * layer}"],
        )
    chex.assert_trees_all_equal(found["encoder"]["embeddings"], source["encoder"]["embeddings"])


def test_flops_count_the_teacher_a_third():
    head = TEACHER.head.flops(ENCODER)
    teacher = TEACHER.encoder.flops(LENGTH) + LENGTH * head
    assert STUDENT.flops(LENGTH) == ENCODER.flops(LENGTH) + LENGTH * head + teacher / 3
    fewer = STUDENT.clone(soft_on="hidden").flops(LENGTH)
    assert fewer == STUDENT.flops(LENGTH) - (LENGTH - 2) * head * 4 / 3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"teacher": None}, "expected weights with a vocabulary head"),
        ({"pair": "nsp"}, "no pair task in distillation"),
        (
            {"teacher": TEACHER.clone(encoder=ENCODER.clone(width=24))},
            "model.width: 12 is not the teacher's, 24",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    module = STUDENT.clone(**fields)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), batch())


GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "text"
TINY = dict(width=12, depth=1, num_heads=3, mlp_dim=20, vocab_size=29, max_length=LENGTH)
CONFIG = {
    "model": {"name": "distilbert", **TINY},
    "preprocessing": {
        "name": "text",
        "tokenizer": "nowhere.json",
        "max_length": LENGTH,
        "vocabulary": VOCABULARY,
    },
}


def test_a_teacher_can_be_said_before_its_weights_are_there():
    teacher = {
        "path": "nowhere",
        "model": {"name": "bert", **TINY, "depth": 4},
        "objective": {"name": "masked_language", "pair": "nsp"},
    }
    preprocessing = config.build(PREPROCESSING, CONFIG["preprocessing"], "preprocessing")
    section = {"name": "distilled_language", "teacher": teacher}
    objective = build_objective({**CONFIG, "objective": section}, preprocessing)
    assert objective.teacher.encoder.size.depth == 4
    assert objective.teacher.vocabulary == VOCABULARY
    section["teacher"] = str(GOLDEN / "bert")
    with pytest.raises(ConfigError, match="bert holds an encoder alone, no heads"):
        build_objective({**CONFIG, "objective": section}, preprocessing)
