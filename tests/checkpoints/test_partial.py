"""Partial loading: every parameter is accounted for, and every change is said."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.checkpoints.partial import load_partially
from encoders.errors import CheckpointError, ConfigError
from encoders.layers.position import resize_positions
from encoders.layers.stack import stack_layers

DEPTH = 12


def make(seed, *, head=None, grid=(2, 2), depth=DEPTH, decoder=False):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return rng.standard_normal(shape, np.float32)

    tree = {
        "encoder": {
            "cls_token": array(4),
            "positions": array(*grid, 4),
            **{f"blocks_{i}": {"mlp": {"kernel": array(4, 6)}} for i in range(depth)},
            "norm": {"scale": array(4)},
        }
    }
    if decoder:
        tree["decoder"] = {f"blocks_{i}": {"kernel": array(3, 3)} for i in range(2)}
    if head:
        tree["head"] = {"kernel": array(4, head), "bias": array(head)}
    return tree


PRETRAINED = make(0, decoder=True)
LOAD = ((r"encoder/.*", True),)


def test_fine_tuning_loads_the_encoder_and_says_what_is_fresh():
    target = make(1, head=10)
    params, report = load_partially(target, PRETRAINED, LOAD, ("head/.*",))
    chex.assert_trees_all_equal(params["encoder"], PRETRAINED["encoder"])
    chex.assert_trees_all_equal(params["head"], target["head"])
    assert report == [
        "loaded: 15 of the checkpoint's 17 arrays, layer by layer",
        "fresh: head/bias (re-initialised)",
        "fresh: head/kernel (re-initialised)",
        "unused: decoder/ (2 arrays)",
    ]


def test_templates_rename_and_the_first_rule_wins():
    target = make(1, head=3)
    source = {"trunk": PRETRAINED["encoder"], "probe": {"w": np.ones((4, 3)), "b": np.ones(3)}}
    params, _ = load_partially(
        target,
        source,
        (
            ("head/kernel", "probe/w"),
            ("head/.*", "probe/b"),
            (r"encoder/(.*)", r"trunk/\1"),
        ),
    )
    chex.assert_trees_all_equal(params["encoder"], PRETRAINED["encoder"])
    assert params["head"]["kernel"].dtype == np.float32
    assert np.all(params["head"]["kernel"] == 1)
    assert np.all(params["head"]["bias"] == 1)


@pytest.mark.parametrize("scanned_here", [False, True])
@pytest.mark.parametrize("scanned_there", [False, True])
def test_scanned_and_unrolled_weights_load_into_each_other(scanned_here, scanned_there):
    expected = make(1)["encoder"]
    expected = {"encoder": {**PRETRAINED["encoder"], "norm": expected["norm"]}}
    target = stack_layers(make(1)) if scanned_here else make(1)
    source = stack_layers(PRETRAINED) if scanned_there else PRETRAINED
    params, report = load_partially(target, source, LOAD, ("encoder/norm/.*",))
    chex.assert_trees_all_equal(params, stack_layers(expected) if scanned_here else expected)
    layout = [line for line in report if line.startswith("layout")]
    assert bool(layout) == (scanned_here != scanned_there)
    assert all(("were stacked" in line) == scanned_here for line in layout)


def test_layers_may_be_fresh_one_by_one_even_in_a_stack():
    """The last layers are re-initialised, as some fine-tuning recipes want."""
    target = stack_layers(make(1))
    params, report = load_partially(target, PRETRAINED, LOAD, (r"encoder/blocks_(10|11)/.*",))
    kernels = params["encoder"]["blocks"]["mlp"]["kernel"]
    for layer in range(DEPTH):
        kept = target["encoder"]["blocks"]["mlp"]["kernel"][layer]
        loaded = PRETRAINED["encoder"][f"blocks_{layer}"]["mlp"]["kernel"]
        np.testing.assert_array_equal(kernels[layer], kept if layer >= 10 else loaded)
    assert "fresh: encoder/blocks_{10,11}/mlp/kernel (re-initialised)" in report


def test_positions_are_resized_to_the_grid_and_nothing_else_is():
    target = make(1, grid=(3, 5))
    params, report = load_partially(target, PRETRAINED, LOAD)
    expected = resize_positions(jnp.asarray(PRETRAINED["encoder"]["positions"]), (3, 5))
    np.testing.assert_array_equal(params["encoder"]["positions"], expected)
    assert "resized: encoder/positions from 2x2 to 3x5 (bicubic)" in report
    target["encoder"]["norm"]["scale"] = np.zeros(5, np.float32)
    with pytest.raises(CheckpointError, match=r"'encoder/norm/scale' is \[4\] in .* \[5\] here"):
        load_partially(target, PRETRAINED, LOAD)


def test_target_may_be_jax_arrays_of_another_dtype():
    target = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), make(1, head=2))
    params, _ = load_partially(target, PRETRAINED, LOAD, ("head/.*",))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal(params["head"], target["head"])


def test_report_joins_layers():
    *_, line = load_partially(make(1), PRETRAINED, LOAD, (r"encoder/blocks_([2-9]|1\d)/.*",))[1][:2]
    assert line == "fresh: encoder/blocks_{2..11}/mlp/kernel (re-initialised)"
    *_, line = load_partially(make(1), PRETRAINED, LOAD, (r"encoder/blocks_7/.*",))[1][:2]
    assert line == "fresh: encoder/blocks_7/mlp/kernel (re-initialised)"


@pytest.mark.parametrize(
    ("load", "fresh", "kind", "message"),
    [
        (LOAD, (), ConfigError, "nothing says what becomes of head/bias, head/kernel; name them"),
        (LOAD, ("heads/.*",), ConfigError, "init_from.fresh: rule 'heads/.*' matches no path"),
        (((r"encodr/.*", True),), (".*",), ConfigError, "init_from.load: rule 'encodr/.*' matches"),
        (((".*", True),), (), CheckpointError, "the checkpoint has no head/bias, head/kernel;"),
        (
            ((r"encoder/(.*)", r"trunk/\1"),),
            ("head/.*",),
            CheckpointError,
            "has no trunk/blocks_0/mlp/kernel (for encoder/blocks_0/mlp/kernel), ",
        ),
        (((r"encoder/.*", r"\1"),), ("head/.*",), ConfigError, r"'\1' does not fit"),
        (((r"encoder/.*", 3),), ("head/.*",), ConfigError, "must map to True or a path, got 3"),
        (((r"encoder/.*", False),), ("head/.*",), ConfigError, "True or a path, got False"),
    ],
)
def test_mistakes_are_named(load, fresh, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        load_partially(make(1, head=2), PRETRAINED, load, fresh)


def test_a_shallower_checkpoint_is_refused():
    with pytest.raises(
        CheckpointError, match="has no encoder/blocks_12/mlp/kernel; its paths look"
    ):
        load_partially(make(1, depth=13), PRETRAINED, LOAD)
