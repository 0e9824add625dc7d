"""Real steps, compiled for TPU pods: memory that adds up, FLOPs, and the textbook's collectives.

The compiler is libtpu, which the test extra installs: where it is missing these tests fail rather
than leave a hole.
"""

import dataclasses

import jax
import planned
import pytest

from encoders.config import load_config
from encoders.training.experiment import Experiment
from launch.planning import compiled, hlo, memory, products, search, target, traffic

BF16 = 2
pytestmark = pytest.mark.usefixtures("quick_compiler")


def compile_for(topology: str, config):
    """(experiment, what the compiler made, its text, its collectives)."""
    machine = search.pod(target.parse_topology(topology))
    experiment = Experiment(config, devices=machine.devices)
    made = compiled.lower(experiment).compile()
    module = hlo.parse(made.as_text())
    return experiment, made, module, traffic.collectives(module, experiment.mesh.size)


@pytest.fixture(scope="module")
def fsdp():
    return compile_for("v5p:2x4x4", planned.config())


@pytest.fixture(scope="module")
def tensor():
    return compile_for("v5p:2x2x2", planned.config(mesh=dict(fsdp=1, data=2, tensor=4)))


def sent(found, mesh, *axes: str) -> float:
    from launch.planning.roofline import axes_of

    shape = dict(mesh.shape)
    return sum(each.sent for each in found if axes_of(each.groups, shape) == axes)


def test_the_parts_add_up_to_what_the_compiler_says(fsdp):
    experiment, made, module, _ = fsdp
    parts = memory.measure(made, module)
    assert parts.total == memory.compiler_total(made)
    assert min(parts.parameters, parts.optimizer, parts.batch, parts.workspace) > 0
    assert parts.gradients > 0
    # Every argument is named: nothing is put under 'other' to make the sum right.
    named = sum(memory.argument_parts(module).values())
    assert named == made.memory_analysis().argument_size_in_bytes
    assert parts.parameters >= compiled.shard_bytes(
        jax.tree.leaves(experiment.abstract_state.params)
    )
    assert parts.other < 100_000


def test_the_forward_pass_keeps_what_rematerialisation_leaves(fsdp):
    """With remat 'full' that is a block's input: [B, T, D] of every layer, in bfloat16."""
    experiment, _, module, _ = fsdp
    rows = experiment.sections.batch_size / experiment.mesh.size
    expected = planned.DEPTH * rows * planned.TOKENS * planned.WIDTH * BF16
    assert memory.accumulators(module)[1] == pytest.approx(expected, rel=0.02)


def test_products_on_a_pod_are_those_of_the_model(tensor):
    experiment, _, module, _ = tensor
    per_example = products.product_flops(module) * experiment.mesh.size / 128
    forward = experiment.flops_per_example() / 3
    again = per_example / forward - 3
    # A block computes again all but its last product, whose result nothing in it needs.
    assert 0.5 < again < 1


def test_fsdp_moves_what_the_textbook_says(fsdp):
    """Parameters are gathered twice and gradients reduce-scattered once, in bfloat16;
    rematerialisation gathers those of queries, keys and values, a quarter, a third time."""
    experiment, _, _, found = fsdp
    size = sum(leaf.size for leaf in jax.tree.leaves(experiment.param_shapes))
    shards = experiment.mesh.shape["fsdp"]
    once = size * BF16 * (shards - 1) / shards
    assert sent(found, experiment.mesh, "fsdp") == pytest.approx(3.25 * once, rel=0.05)


def test_tensor_moves_what_the_textbook_says(tensor):
    """Two all-reduces of [B, T, D] in a block forward, two backward; remat adds one."""
    experiment, _, _, found = tensor
    rows = experiment.sections.batch_size / experiment.mesh.shape["data"]
    one = 2 * rows * planned.TOKENS * planned.WIDTH * BF16 * 3 / 4
    # The second product's sum is not needed again, so rematerialisation costs one.
    assert sent(found, experiment.mesh, "tensor") == pytest.approx(5 * planned.DEPTH * one, rel=0.1)


def test_only_parameters_are_gathered(fsdp, tensor):
    for experiment, _, _, found in (fsdp, tensor):
        assert compiled.surprises(experiment, found) == ()


def test_a_gathered_activation_or_optimizer_state_is_noticed(fsdp):
    experiment, _, _, found = fsdp
    rows = experiment.sections.batch_size
    gather = next(each for each in found if each.kind == "all-gather")
    for array in (
        hlo.Array("bf16", (rows, planned.TOKENS, planned.WIDTH)),
        hlo.Array("f32", (planned.WIDTH, planned.MLP)),
    ):
        bad = dataclasses.replace(gather, arrays=(array,))
        assert len(compiled.surprises(experiment, [bad])) == 1


def test_512_chips():
    config = planned.config(mesh=dict(data=16, fsdp=32))
    config.batch_size = 1024
    plan = search.pod(target.parse_topology("v5p:8x8x8")).plan(config)
    assert plan.fits
    assert plan.chips == 512
    assert plan.surprises == ()
    assert {"data", "fsdp"} <= {axis for flow in plan.flows for axis in flow.axes.split("+")}


def test_vit_22b_on_1024_chips():
    config = load_config(
        "configs/vit_22b_jft.py", ["hardware.mesh.data=4", "hardware.mesh.fsdp=256"]
    )
    experiment, made, _, found = compile_for("v5p:8x8x16", config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(experiment.param_shapes))
    blocks = sum(
        leaf.size for leaf in jax.tree.leaves(experiment.param_shapes["encoder"]["blocks"])
    )
    assert blocks == pytest.approx(21.743e9, rel=0.001)  # arXiv 2302.05442, table 1
    assert memory.compiler_total(made) < 40 * 2**30
    kinds = {
        kind: sum(c.sent for c in found if c.kind == kind and len(c.groups[0]) in (16, 256))
        for kind in ("all-gather", "reduce-scatter")
    }
    once = parameters * BF16 * 255 / 256
    assert kinds["all-gather"] == pytest.approx(2 * once, rel=0.1)
    assert kinds["reduce-scatter"] == pytest.approx(once, rel=0.1)
    assert compiled.surprises(experiment, found) == ()
