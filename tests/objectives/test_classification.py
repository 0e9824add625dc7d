"""Losses against PyTorch's, mixing, distillation, the linear probe, and sums that add up."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.errors import ConfigError, DataError
from encoders.models.vit import ViT
from encoders.objectives import OBJECTIVES
from encoders.objectives.classification import Classification, Distillation
from encoders.objectives.mix import mix_images, mix_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ENCODER = ViT(patch_size=4, width=16, depth=1, mlp_dim=32, num_heads=2, pool="mean")


def build(encoder=ENCODER, **fields):
    """An objective of seven classes and its variables."""
    fields = {"num_classes": 7, "head_init": 0.3, **fields}
    objective = Classification(encoder, **fields)
    return objective, jax.jit(objective.init)(jax.random.key(1), batch_of(2))


def batch_of(size):
    return {
        "image": jax.random.normal(jax.random.key(0), (size, 8, 12, 3)),
        "label": jnp.arange(size, dtype=jnp.int32) % 7,
        "row": jnp.arange(size, dtype=jnp.int32),
    }


def bound(**fields):
    return Classification(ENCODER, num_classes=7, **fields).bind({"params": {}})


def test_losses_match_pytorch():
    arrays = np.load(GOLDEN / "vision_losses.npz")
    logits, teacher = arrays["logits"], arrays["teacher"]
    smooth = 0.9 * jax.nn.one_hot(arrays["label"], 7) + 0.1 / 7
    for loss in ("softmax", "sigmoid"):
        value = bound(loss=loss)._label_loss(logits, smooth).sum()
        np.testing.assert_allclose(value, arrays[loss], rtol=0, atol=1e-4)
    for kind in ("soft", "hard"):
        distillation = Distillation(kind, temperature=3.0)
        student = bound(distillation=distillation, teacher=ENCODER)
        value = student._teacher_loss(logits, teacher).sum()
        np.testing.assert_allclose(value, arrays[kind], rtol=0, atol=1e-4)


def logits_of(objective, variables, images):
    return jax.jit(functools.partial(objective.apply, method="logits"))(variables, images)


def test_plain_loss_and_accuracy():
    objective, variables = build(label_smoothing=0.1)
    batch = batch_of(6)
    out = jax.jit(objective.apply)(variables, batch)
    logits = logits_of(objective, variables, batch["image"])
    plain = -jax.nn.log_softmax(logits)[np.arange(6), batch["label"]].sum()
    np.testing.assert_allclose(out.loss, plain, rtol=1e-6)
    assert out.weight == 6
    correct, counted = out.metrics["accuracy"]
    assert (correct, counted) == ((logits.argmax(-1) == batch["label"]).sum(), 6)
    # Smoothing is a training matter.
    train = jax.jit(lambda v, b: objective.apply(v, b, train=True))(variables, batch)
    assert abs(train.loss - out.loss) > 1e-3
    # Padding counts in nothing.
    evaluate = jax.jit(objective.apply)
    padded = evaluate(variables, {**batch, "valid": jnp.arange(6) < 4})
    part = evaluate(variables, {name: x[:4] for name, x in batch.items()})
    np.testing.assert_allclose(padded.loss, part.loss, rtol=1e-5)
    assert padded.weight == 4
    np.testing.assert_allclose(padded.metrics["accuracy"], part.metrics["accuracy"])


def test_zero_head_starts_at_the_uniform_loss():
    for loss, expected in (("softmax", np.log(7)), ("sigmoid", 7 * np.log(2))):
        objective, variables = build(loss=loss, head_init=0.0)
        out = jax.jit(objective.apply)(variables, batch_of(2))
        np.testing.assert_allclose(out.loss / out.weight, expected, rtol=1e-6)


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_weights(mixing):
    mixing = {"mixup": 0.0, "cutmix": 0.0, **mixing}
    draw = jax.jit(lambda key: mix_weights(key, (9, 14), **mixing))
    draws = [np.asarray(draw(jax.random.key(seed))) for seed in range(30)]
    kinds = {"cutmix" if len(np.unique(weights)) == 2 else "mixup" for weights in draws}
    assert kinds <= {name for name, alpha in mixing.items() if alpha} | {"mixup"}
    for weights in draws:
        assert weights.shape == (9, 14, 1)
        if len(np.unique(weights)) == 2:
            assert set(np.unique(weights)) == {0.0, 1.0}
            rows, columns, _ = np.nonzero(weights == 0)
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert box == len(rows), "the pixels cut out are a rectangle"
        else:
            assert len(np.unique(weights)) == 1
            assert 0 <= weights.min() <= weights.max() <= 1
    assert len({weights.mean().round(6) for weights in draws}) > 5


def test_mixing_takes_partners_half_a_batch_away():
    images = jnp.arange(4.0).reshape(4, 1, 1, 1) * jnp.ones((4, 2, 2, 1))
    mixed = mix_images(images, jnp.full((2, 2, 1), 0.75))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.5, 1.5, 1.5, 2.5])
    with pytest.raises(ConfigError, match="even"):
        mix_images(images[:3], jnp.ones((2, 2, 1)))


def test_micro_batches_add_up_to_the_whole():
    objective, variables = build(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    batch, key = batch_of(8), jax.random.key(4)

    def total(params, batch):
        out = objective.apply({"params": params}, batch, train=True, rngs={"corrupt": key})
        return out.loss, out

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (value, whole), gradients = step(variables["params"], batch)
    parts = [
        step(variables["params"], {name: x[m::2] for name, x in batch.items()}) for m in range(2)
    ]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), value, rtol=1e-6)
    assert sum(part[0][1].weight for part in parts) == whole.weight
    correct = sum(part[0][1].metrics["accuracy"][0] for part in parts)
    np.testing.assert_allclose(correct, whole.metrics["accuracy"][0], rtol=1e-6)
    sums = jax.tree.map(lambda *leaves: sum(leaves), *(part[1] for part in parts))
    for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_distillation_from_a_teacher_that_gets_no_gradient():
    teacher, teacher_variables = build(head_init=1.0)
    encoder = ENCODER.clone(num_registers=1, pool="cls")
    fields = {
        "name": "classification",
        "num_classes": 7,
        "distillation": {"kind": "hard", "weight": 0.3, "token": True},
    }
    student = config.build(OBJECTIVES, fields, "objective", encoder=encoder, teacher=teacher)
    batch = batch_of(4)
    variables = {**jax.jit(student.init)(jax.random.key(2), batch), "teacher": teacher_variables}
    assert set(variables["params"]) == {"encoder", "head", "distillation_head"}

    def loss(variables):
        out = student.apply(variables, batch, train=True)
        return out.loss, out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    # Both heads start at zero: each says log 7, whatever the weight between them.
    np.testing.assert_allclose(out.loss / out.weight, np.log(7), rtol=1e-6)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients["teacher"]))
    bias = gradients["params"]["distillation_head"]["bias"]
    classes = logits_of(teacher, teacher_variables, batch["image"]).argmax(-1)
    expected = 0.3 * (4 / 7 - jax.nn.one_hot(classes, 7).sum(0))
    np.testing.assert_allclose(bias, expected, rtol=0, atol=1e-6)
    assert set(out.metrics) == {"accuracy", "agreement"}
    # In evaluation nobody asks the teacher, and the two heads are averaged.
    logits = logits_of(student, {"params": variables["params"]}, batch["image"])
    assert logits.shape == (4, 7)
    with pytest.raises(ConfigError, match="variables"):
        student.apply({"params": variables["params"]}, batch, train=True)


def test_distillation_without_a_teacher_is_an_error():
    with pytest.raises(ConfigError, match="teacher"):
        build(distillation=Distillation())


def test_linear_probe_freezes_the_encoder_and_normalises_its_features():
    objective, variables = build(linear_probe=True, encoder=ENCODER.clone(drop_path=0.5))
    batch = batch_of(16)

    def loss(params):
        out, new = objective.apply(
            {**variables, "params": params}, batch, train=True, mutable=["stats"]
        )
        return out.loss, new["stats"]

    (_, stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))
    assert np.abs(gradients["head"]["kernel"]).max() > 0
    encoder = {"params": variables["params"]["encoder"]}
    features = np.asarray(jax.jit(ENCODER.apply)(encoder, batch["image"]).pooled)
    # Running statistics start at 0 and 1 and move a tenth of the way.
    norm = stats["head_norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * features.mean(0), rtol=0, atol=1e-6)
    expected = 0.9 + 0.1 * features.var(0, ddof=1)
    np.testing.assert_allclose(norm["var"], expected, rtol=0, atol=1e-6)
    # In evaluation they are what features are normalised by.
    known = {
        **variables,
        "stats": {"head_norm": {"mean": features.mean(0), "var": features.var(0)}},
    }
    logits = logits_of(objective, known, batch["image"])
    normal = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, normal @ head["kernel"] + head["bias"], rtol=0, atol=1e-4)


def test_a_batch_without_labels_is_an_error():
    sound = {"waveform": jnp.zeros((2, 100)), "length": jnp.full(2, 100)}
    with pytest.raises(DataError, match="classification needs labels"):
        bound()(sound)


def test_numbers_out_of_range_are_errors():
    for fields, message in [
        ({"num_classes": 0}, "num_classes from 1"),
        ({"label_smoothing": 3.0}, "label_smoothing from 0 to 1"),
        ({"mixup": -1.0}, "mixup and cutmix count from 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Classification(ENCODER, **{"num_classes": 7, **fields}).init(jax.random.key(0), {})


def test_data_of_more_classes_than_the_head_has_is_an_error():
    data = types.SimpleNamespace(class_names=("cat", "dog", "owl"))
    Classification(ENCODER, num_classes=3).check_source(data)
    with pytest.raises(ConfigError, match=r"num_classes: expected 3, .* got 2"):
        Classification(ENCODER, num_classes=2).check_source(data)


def test_encoder_without_pooling_is_an_error():
    with pytest.raises(ConfigError, match=r"model\.pool"):
        build(encoder=ENCODER.clone(pool="none"))


def test_flops_count_what_is_frozen_once():
    plain = Classification(ENCODER, num_classes=7)
    probe = Classification(ENCODER, num_classes=7, linear_probe=True)
    head = 2 * 16 * 7
    encoder = ENCODER.flops((8, 12))
    assert plain.flops((8, 12)) == encoder + head
    assert probe.flops((8, 12)) == pytest.approx(encoder / 3 + head)
    dropped = Classification(ENCODER.clone(token_drop=0.5), num_classes=7)
    assert dropped.flops((8, 12)) == ENCODER.flops((8, 12), kept=3) + head
