"""Optimizers against optax's own and the papers' formulas; scanned layers against unrolled ones."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from encoders import rules
from encoders.checkpoints.store import CheckpointStore
from encoders.config import Durations
from encoders.errors import ConfigError
from encoders.layers.stack import stack_layers, unstack_layers
from encoders.parallel.sharding import like_parameters
from encoders.rules import layer_ids
from encoders.training.optimizers import OPTIMIZERS, make_optimizer

DURATIONS = Durations(batch_size=4, examples_per_epoch=40, total_steps=20)
COSINE = {"name": "cosine", "warmup": {"steps": 4}}
CONSTANT = {"name": "constant"}
DEPTH, STEPS = 3, 4


def make_params():
    """A small ViT's tree, with awkward values: zeros, and scales far apart."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def block(scale):
        return {
            "norm1": {"bias": jnp.zeros(8)},
            "layer_scale1": jnp.full(8, 1e-4),
            "mlp": {"fc1": {"kernel": scale * normal(8, 12), "bias": normal(12)}},
        }

    return {
        "encoder": {
            "patch_embedding": {"kernel": normal(6, 8), "bias": normal(8)},
            "cls_token": normal(8),
            "register_tokens": normal(2, 8),
            "positions": normal(2, 3, 8),
            **{f"blocks_{i}": block(10.0**i) for i in range(DEPTH)},
            "norm": {"scale": jnp.ones(8)},
        },
        "head": {"kernel": normal(8, 5), "bias": normal(5)},
    }


PARAMS = make_params()


def gradients(step, params):
    # In numpy, which compiles nothing.
    return jax.tree.map(
        lambda x: np.float32(0.3) * np.sin(np.asarray(x) * (step + 3) + step), params
    )


def train(optimizer, params, steps=STEPS, layout=lambda tree: tree):
    """A few steps with gradients that depend on the unrolled parameters only."""
    params = layout(jax.device_get(params))
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for step in range(steps):
        grads = layout(gradients(step, unstack_layers(params)))
        params, state = update(grads, state, params)
        params = jax.device_get(params)
        history.append(params)
    return history, state


def make(params=PARAMS, **section):
    section = {"lr": 0.01, "schedule": COSINE, **section}
    return make_optimizer(section, durations=DURATIONS, params=params)[0]


def assert_same_history(ours, theirs, params=PARAMS, **tolerance):
    for a, b in zip(train(ours, params)[0], train(theirs, params)[0], strict=True):
        chex.assert_trees_all_close(a, b, **{"rtol": 2e-6, "atol": 1e-7, **tolerance})


def kernels(tree):
    return rules.map_with_path(lambda path, _: path.endswith("kernel"), tree)


# --- the algorithms -----------------------------------------------------------------------------


def test_adamw_is_that_of_optax():
    cosine = optax.warmup_cosine_decay_schedule(0.0, 0.01, 4, 20)
    theirs = optax.adamw(cosine, 0.8, 0.95, 1e-6, weight_decay=0.3, mask=kernels)
    ours = make(name="adamw", b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3)
    assert_same_history(ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_without_bias_correction_the_averages_are_taken_as_they_are(name):
    """At the first step m / sqrt(v) is (1 - b1) / sqrt(1 - b2) of the corrected one."""
    section = {"name": name, "schedule": CONSTANT, "b1": 0.9, "b2": 0.99, "eps": 1e-30}
    section["decay_rules"] = ()
    params = {"norm": {"bias": PARAMS["head"]["kernel"][0]}}  # LAMB rescales what decays only
    corrected = train(make(params, **section), params, steps=1)[0][0]
    plain = train(make(params, **section, bias_correction=False), params, steps=1)[0][0]
    moved = (jax.tree.leaves(x)[0] - jax.tree.leaves(params)[0] for x in (corrected, plain))
    a, b = (np.asarray(x) for x in moved)
    np.testing.assert_allclose(b, a * 0.1 / np.sqrt(0.01), rtol=2e-4)


def test_stable_adamw_is_adamw_until_a_gradient_outgrows_its_history():
    def update(optimizer, scales):
        state, grad = optimizer.init(PARAMS), None
        for scale in scales:
            grad = jax.tree.map(lambda x, s=scale: s * jnp.ones_like(x), PARAMS)
            directions, state = optimizer.update(grad, state, PARAMS)
        return jax.tree.leaves(directions)[0].ravel()[0]

    section = {"schedule": CONSTANT, "b1": 0.9, "b2": 0.99, "eps": 1e-6}
    adam, stable = (make(name=name, **section) for name in ("adamw", "stable_adamw"))
    assert update(stable, [1.0, 1.0]) == pytest.approx(float(update(adam, [1.0, 1.0])), rel=1e-5)
    # v-hat = (.99 * .01 + .01 * 100) / (1 - .99^2), so RMS = sqrt(100 / v-hat).
    rms = np.sqrt(100 / ((0.99 * 0.01 + 0.01 * 100) / (1 - 0.99**2)))
    assert rms > 1
    ratio = float(update(adam, [1.0, 10.0]) / update(stable, [1.0, 10.0]))
    assert ratio == pytest.approx(rms, rel=1e-4)


def test_decay_conventions_differ_by_the_peak_learning_rate():
    """big_vision's decay w is AdamW's w / lr, along the whole schedule (pitfall 10)."""
    theirs = make(name="adamw", weight_decay=0.1)
    ours = make(name="adamw", weight_decay=0.1 * 0.01, decay_convention="independent")
    assert_same_history(ours, theirs)


@pytest.mark.parametrize(("convention", "factor"), [("lr", 0.01 * 0.5), ("independent", 1.0)])
def test_decay_alone_is_the_stated_formula(convention, factor):
    """Without a gradient: p (1 - factor * w * shape); lr multipliers count for 'lr' only."""
    optimizer = make(
        name="sgd",
        weight_decay=0.2,
        decay_convention=convention,
        lr_rules=(("head/kernel", 0.5),),
        decay_rules=(("head/kernel", 2.0),),
    )
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    state = optimizer.init(PARAMS)
    for step in range(3):
        updates, state = optimizer.update(zeros, state, PARAMS)
        expected = -(step / 4) * factor * 0.2 * 2.0 * PARAMS["head"]["kernel"]
        np.testing.assert_allclose(updates["head"]["kernel"], expected, rtol=1e-6)
    assert not np.any(updates["encoder"]["patch_embedding"]["kernel"])


def test_lion_is_that_of_optax():
    cosine = optax.warmup_cosine_decay_schedule(0.0, 0.01, 4, 20)
    theirs = optax.lion(cosine, 0.9, 0.98, weight_decay=0.1, mask=kernels)
    assert_same_history(make(name="lion", b2=0.98, weight_decay=0.1), theirs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_l2_is_that_of_pytorch(nesterov):
    theirs = optax.chain(
        optax.add_decayed_weights(0.1, mask=kernels), optax.sgd(0.01, 0.9, nesterov)
    )
    ours = make(
        name="sgd", schedule=CONSTANT, weight_decay=0.1, decay_convention="l2", nesterov=nesterov
    )
    assert_same_history(ours, theirs)


def test_lamb_is_that_of_optax_for_matrices():
    matrices = {"a": {"kernel": PARAMS["head"]["kernel"]}, "b": {"kernel": jnp.zeros((3, 4))}}
    theirs = optax.lamb(0.01, 0.9, 0.98, weight_decay=0.1)
    ours = make(matrices, name="lamb", schedule=CONSTANT, b2=0.98, weight_decay=0.1)
    assert_same_history(ours, theirs, matrices)


def test_lamb_leaves_what_does_not_decay_to_adam():
    lamb = train(make(name="lamb", eps=1e-8, weight_decay=0.1), PARAMS)[0][-1]
    adam = train(make(name="adamw"), PARAMS)[0][-1]
    chex.assert_trees_all_close(lamb["encoder"]["positions"], adam["encoder"]["positions"])
    assert float(jnp.abs(lamb["head"]["kernel"] - adam["head"]["kernel"]).max()) > 1e-3


def test_lars_is_that_of_optax_at_a_constant_rate_and_of_mae_at_a_falling_one():
    theirs = optax.lars(
        0.01, 0.1, kernels, trust_coefficient=0.02, trust_ratio_mask=kernels, momentum=0.8
    )
    fields = {"name": "lars", "weight_decay": 0.1, "trust_coefficient": 0.02, "momentum": 0.8}
    assert_same_history(make(schedule=CONSTANT, **fields), theirs)

    # MAE's util/lars.py: momentum gathers rescaled gradients, the rate of the step scales them all.
    def reference(steps):
        p, mu = np.asarray(PARAMS["head"]["kernel"], np.float64), 0.0
        for step in range(steps):
            dp = np.asarray(gradients(step, jnp.asarray(p, jnp.float32)), np.float64) + 0.1 * p
            dp *= 0.02 * np.linalg.norm(p) / np.linalg.norm(dp)
            mu = 0.8 * mu + dp
            p = p - 0.01 * (1 - step / 20) * mu
        return p

    linear = make(schedule={"name": "linear"}, **fields)
    ours = train(linear, PARAMS)[0][-1]["head"]["kernel"]
    np.testing.assert_allclose(ours, reference(STEPS), rtol=1e-5)


def test_adafactor_is_that_of_vit_g():
    """Row and column means of squared gradients, decay min(.999, 1 - t^-.8), bf16 momentum."""
    matrix = {"kernel": PARAMS["head"]["kernel"]}
    ours = make(matrix, name="adafactor", min_factored_size=2, schedule=CONSTANT)
    history, state = train(ours, matrix)

    p, momentum = np.asarray(matrix["kernel"], np.float64), 0.0
    row, column = np.zeros(8), np.zeros(5)
    for step in range(STEPS):
        g = np.asarray(gradients(step, jnp.asarray(p, jnp.float32)), np.float64)
        b2 = min(0.999, 1 - (step + 1) ** -0.8)
        row = b2 * row + (1 - b2) * (g**2).mean(1)
        column = b2 * column + (1 - b2) * (g**2).mean(0)
        u = g / np.sqrt(np.outer(row, column) / row.mean())
        momentum = 0.9 * momentum + 0.1 * u
        p = p - 0.01 * momentum
        momentum = np.asarray(jnp.asarray(momentum, jnp.bfloat16).astype(jnp.float32))
        np.testing.assert_allclose(history[step]["kernel"], p, atol=3e-4)
    shapes = {x.shape: x.dtype for x in jax.tree.leaves(state) if x.ndim}
    assert shapes[(8, 5)] == jnp.bfloat16  # the first moment; the second is only rows and columns
    assert shapes[(8,)] == shapes[(5,)] == jnp.float32


def test_muon_is_that_of_optax_for_matrices_of_blocks():
    blocks = {
        f"blocks_{i}": {"kernel": jnp.cos(jnp.arange(30.0).reshape(5, 6) + i)} for i in (0, 1)
    }
    theirs = optax.contrib.muon(0.01, weight_decay=0.1, consistent_rms=0.2)
    ours = make(blocks, name="muon", schedule=CONSTANT, weight_decay=0.1)
    assert_same_history(ours, theirs, blocks)
    theirs = optax.contrib.muon(0.01, nesterov=False, beta=0.9)
    ours = make(blocks, name="muon", schedule=CONSTANT, rms=None, nesterov=False, momentum=0.9)
    assert_same_history(ours, theirs, blocks)


def test_muon_leaves_embeddings_heads_and_vectors_to_adam():
    muon = train(make(name="muon", b2=0.999), PARAMS)[0][-1]
    adam = train(make(name="adamw"), PARAMS)[0][-1]
    same = {
        path: bool(jnp.allclose(a, b))
        for path, a, b in zip(
            rules.leaf_paths(muon), jax.tree.leaves(muon), jax.tree.leaves(adam), strict=True
        )
    }
    assert {path for path, equal in same.items() if not equal} == {
        f"encoder/blocks_{i}/mlp/fc1/kernel" for i in range(DEPTH)
    }


# --- scanned layers -----------------------------------------------------------------------------

PARTICULAR = {"adafactor": {"min_factored_size": 3}}  # small enough to tempt it to factor layers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_layers_train_like_unrolled_ones(name):
    section = {
        "name": name,
        "weight_decay": 0.1,
        "clip": 1.0,
        "layer_decay": 0.7,
        "lr_rules": ((r".*/blocks_1/.*", 0.5), ("encoder/cls_token", 0.0)),
        "decay_rules": ((r"encoder/blocks_2/.*kernel", 3.0), (r".*/kernel", 1.0)),
        "frozen": ("encoder/patch_embedding/.*",),
        **PARTICULAR.get(name, {}),
    }
    unrolled, _ = train(make(**section), PARAMS)
    scanned, _ = train(make(stack_layers(PARAMS), **section), PARAMS, layout=stack_layers)
    for a, b in zip(unrolled, scanned, strict=True):
        chex.assert_trees_all_close(stack_layers(a), b, rtol=1e-5, atol=1e-7)
    last = unrolled[-1]["encoder"]
    chex.assert_trees_all_equal(last["patch_embedding"], PARAMS["encoder"]["patch_embedding"])
    assert not np.allclose(last["blocks_1"]["norm1"]["bias"], 0)


def test_compile_time_state_does_not_grow_with_depth():
    """Stacks are treated by one vmapped transformation: as many state arrays at any depth."""
    counts = []
    for depth in (2, 5):
        layer = PARAMS["encoder"]["blocks_0"]
        params = stack_layers({"encoder": {f"blocks_{i}": layer for i in range(depth)}})
        state = jax.eval_shape(make(params, name="adafactor").init, params)
        counts.append(len(jax.tree.leaves(state)))
    assert counts[0] == counts[1]


# --- rules --------------------------------------------------------------------------------------


def test_by_default_kernels_decay_and_nothing_else():
    optimizer = OPTIMIZERS["adamw"](lr=1.0, schedule=CONSTANT)
    decays = {path for path, t in optimizer.treatments(PARAMS).items() if np.any(t.decay)}
    assert decays == {path for path in rules.leaf_paths(PARAMS) if path.endswith("kernel")}


def test_layer_ids_are_those_of_mae():
    names = rules.leaf_paths(PARAMS)
    expected = {
        "patch_embedding/kernel": 0,
        "cls_token": 0,
        "register_tokens": 0,
        "positions": 0,
        "blocks_0/norm1/bias": 1,
        "blocks_2/mlp/fc1/bias": 3,
        "norm/scale": 4,
    }
    ids = layer_ids(names)
    for name, number in expected.items():
        assert ids[f"encoder/{name}"] == (number, 4)
    optimizer = OPTIMIZERS["adamw"](lr=1.0, schedule=CONSTANT, layer_decay=0.5)
    treatments = optimizer.treatments(stack_layers(PARAMS))
    assert treatments["head/kernel"].rate == 1.0
    assert treatments["encoder/norm/scale"].rate == 1.0
    assert treatments["encoder/positions"].rate == 0.5**4
    stacked = treatments["encoder/blocks/mlp/fc1/kernel"].rate
    np.testing.assert_allclose(stacked, np.array([0.125, 0.25, 0.5]).reshape(3, 1, 1))


def test_layer_ids_count_each_tower_and_take_a_decoder_for_a_head():
    ids = layer_ids(
        [
            "image/patch_embedding/kernel",
            "image/blocks_1/x",
            "image/mask_token",
            "image/convolutions/conv_0/kernel",
            "image/conv1_bias",
            "image/pooling/probe",
            "text/token_embedding/embedding",
            "text/blocks_5/x",
            "decoder/embed/kernel",
            "decoder/blocks_3/x",
            "scale",
        ]
    )
    assert ids["image/patch_embedding/kernel"] == ids["image/mask_token"] == (0, 3)
    assert ids["image/convolutions/conv_0/kernel"] == ids["image/conv1_bias"] == (0, 3)
    assert ids["image/blocks_1/x"] == (2, 3)
    assert ids["image/pooling/probe"] == (3, 3)
    assert ids["text/token_embedding/embedding"] == (0, 7)
    assert ids["text/blocks_5/x"] == (6, 7)
    for name in ("decoder/embed/kernel", "decoder/blocks_3/x", "scale"):
        assert ids[name][0] == ids[name][1]


# --- frozen -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [lambda tree: tree, stack_layers], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_have_no_state(name, layout):
    params = layout(PARAMS)
    optimizer = make(params, name=name, frozen=("encoder/.*",))
    state = optimizer.init(params)
    trained = sum(x.size for x in jax.tree.leaves(params["head"]))
    assert sum(x.size for x in jax.tree.leaves(state)) <= 2 * trained + 12
    assert not any("encoder" in path for path in rules.leaf_paths(state))


def test_frozen_gradients_do_not_count_for_the_clip_norm():
    head = {"head": PARAMS["head"]}
    alone = make(head, name="sgd", clip=0.1, schedule=CONSTANT)
    expected, _ = alone.update(gradients(0, head), alone.init(head), head)
    grads = gradients(0, PARAMS)
    grads["encoder"] = jax.tree.map(lambda x: jnp.full_like(x, 1e6), grads["encoder"])
    frozen = make(name="sgd", clip=0.1, schedule=CONSTANT, frozen=("encoder/.*",))
    updates, _ = frozen.update(grads, frozen.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["head"], expected["head"])
    assert not any(np.any(x) for x in jax.tree.leaves(updates["encoder"]))
    norm = optax.global_norm(expected) / 0.01
    assert float(norm) == pytest.approx(0.1, rel=1e-5)


def test_a_scanned_stack_is_frozen_whole_or_not_at_all():
    some = {"name": "adamw", "frozen": (r"encoder/blocks_[01]/.*",)}
    make(**some)
    with pytest.raises(ConfigError, match=r"frozen: 'encoder/blocks/.*blocks_0.*scan=False"):
        make(stack_layers(PARAMS), **some)
    every = make(stack_layers(PARAMS), name="adamw", frozen=(r"encoder/blocks_\d/.*",))
    assert not any("blocks" in p for p in rules.leaf_paths(every.init(stack_layers(PARAMS))))


# --- state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "sgd", "lars", "muon"])
def test_only_the_first_moment_may_be_bfloat16(name):
    optimizer = make(name=name, mu_dtype="bfloat16")
    (after, *_), state = train(optimizer, PARAMS, steps=1)
    moments = [p for p, x in zip(rules.leaf_paths(state), jax.tree.leaves(state), strict=True)
               if x.dtype == jnp.bfloat16]  # fmt: skip
    assert len(moments) == len(jax.tree.leaves(PARAMS))
    assert not any("nu/" in path for path in moments)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after))


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_state_goes_through_a_checkpoint(name, tmp_path):
    params = stack_layers(PARAMS)
    optimizer = make(params, name=name, frozen=("encoder/positions",), clip=1.0)
    _, state = train(optimizer, PARAMS, layout=stack_layers)
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, {}, wait=True)
        back = store.restore(jax.eval_shape(optimizer.init, params))
    chex.assert_trees_all_equal(state, back)


@pytest.mark.parametrize("name", ["adamw", "muon", "lamb"])
def test_moments_are_sharded_like_their_parameters(name):
    """Whatever wraps the algorithm (freezing, partitions), its state keeps the parameter paths."""
    params = stack_layers(PARAMS)
    specs = rules.map_with_path(lambda path, _: P(path), params)
    state = jax.eval_shape(make(params, name=name, frozen=("encoder/positions",)).init, params)
    found = like_parameters(state, params, specs)
    leaves = jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, P))
    named = [spec[0] for spec in leaves if spec]
    moments = [x for x in jax.tree.leaves(state) if x.shape not in ((), (3,))]
    assert len(named) == len(moments)
    assert set(named) == {path for path in rules.leaf_paths(params) if path != "encoder/positions"}


def test_init_and_rules_need_shapes_only():
    shapes = jax.eval_shape(make_params)
    optimizer, schedule = make_optimizer(
        {"name": "muon", "lr": 0.01, "schedule": COSINE, "layer_decay": 0.9},
        durations=DURATIONS,
        params=shapes,
    )
    assert jax.tree.leaves(jax.eval_shape(optimizer.init, shapes))
    assert float(schedule(4)) == pytest.approx(0.01)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adam"}, "optimizer.name: unknown name 'adam'. Did you mean 'adamw'?"),
        ({"name": "sgd", "b2": 0.9}, "optimizer.b2: unknown field."),
        ({"name": "adamw", "momentum": 0.9}, "optimizer.momentum: unknown field."),
        ({"name": "adamw", "weight_dacay": 0.1}, "Did you mean 'weight_decay'?"),
        ({"name": "adamw", "lr": "1e-3"}, "optimizer.lr: expected float, got '1e-3'."),
        ({"name": "adamw", "lr": -1.0}, "optimizer.lr: expected a number above 0, got -1.0."),
        ({"name": "adamw", "lr": float("nan")}, "optimizer.lr: expected a number above 0"),
        ({"name": "adamw", "clip": 0.0}, "optimizer.clip: expected a number above 0"),
        ({"name": "adamw", "b2": 1.0}, "optimizer.b2: expected a number from 0 to 1, got 1.0."),
        ({"name": "sgd", "momentum": -0.9}, "optimizer.momentum: expected a number from 0 to 1"),
        ({"name": "adamw", "layer_decay": 0}, "optimizer.layer_decay: expected a number above 0"),
        (
            {"name": "adamw", "weight_decay": -0.1},
            "optimizer.weight_decay: expected a number from 0",
        ),
        ({"name": "lamb", "decay_convention": "independent"}, "optimizer.decay_convention"),
        ({"name": "adamw", "decay_convention": "l2"}, "optimizer.decay_convention"),
        ({"name": "adamw", "mu_dtype": "float16"}, "optimizer.mu_dtype: unknown value 'float16'"),
        (
            {"name": "adamw", "decay_rules": ((".*", "x"),)},
            "optimizer.decay_rules: '.*' must map to a number, got 'x'.",
        ),
        (
            {"name": "adamw", "lr_rules": (("encoder/block_0/.*", 0.1),)},
            "optimizer.lr_rules: rule 'encoder/block_0/.*' matches no path",
        ),
        (
            {"name": "adamw", "decay_rules": (("kernel", 1.0),)},
            "optimizer.decay_rules: rule 'kernel' matches no path",
        ),
        ({"name": "adamw", "frozen": ("decoder/.*",)}, "optimizer.frozen: rule 'decoder/.*'"),
        ({"name": "adamw", "frozen": (".*",)}, "optimizer.frozen: nothing is left to train."),
        ({"name": "adamw", "frozen": ("(",)}, "optimizer.frozen: '(' is not a valid regex"),
        ({"name": "adamw", "schedule": {"name": "cos"}}, "optimizer.schedule.name: unknown name"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make(**section)


def test_lr_and_schedule_are_required():
    for missing in ("lr", "schedule"):
        section = {"name": "adamw", "lr": 0.1, "schedule": CONSTANT}
        del section[missing]
        with pytest.raises(ConfigError, match=f"optimizer.{missing} is missing"):
            make_optimizer(section, durations=DURATIONS, params=PARAMS)
