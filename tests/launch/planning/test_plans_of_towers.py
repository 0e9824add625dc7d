"""Two towers on chips that are not here: a locked one, and a batch compared as a whole in parts."""

import jax
import pytest
from ml_collections import ConfigDict

from encoders.training.experiment import Experiment
from launch.planning import compiled, counted, search, target

SIZE = dict(width=256, depth=2, mlp_dim=1024, num_heads=2, scan=True, remat="full")
ROWS, PARTS = 4096, 8


@pytest.fixture(scope="module")
def config():
    words = dict(size=1000, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
    return ConfigDict(
        dict(
            batch_size=ROWS,
            duration={"steps": 1000},
            preprocessing=dict(
                name="image_text",
                image=dict(image_size=(32, 32)),
                text=dict(tokenizer="nowhere.json", max_length=16, vocabulary=words),
            ),
            data=dict(source=dict(name="sample", dataset="emoji")),
            model=dict(
                name="towers",
                image=dict(name="vit", patch_size=8, **SIZE),
                text=dict(name="clip_text", vocab_size=1000, max_length=16, **SIZE),
                logit_bias=-10.0,
                locked=("image",),
            ),
            objective=dict(name="sigmoid_contrast"),
            optimizer=dict(name="adamw", lr=1e-3, schedule=dict(name="cosine")),
            hardware=dict(
                mesh=dict(dcn=1, data=1, fsdp=-1, tensor=1, sequence=1), micro_batches=PARTS
            ),
        )
    )


def test_a_locked_tower_on_four_chips(config):
    """As SigLiT's headline: no more than its parts, gradients of the text tower alone, a ring."""
    plan = search.pod(target.parse_topology("v4:2x2x1")).plan(config)
    assert plan.fits
    assert plan.surprises == ()
    assert plan.remat == "full"
    kinds = {flow.kind for flow in plan.flows}
    assert "collective-permute" in kinds
    # Not even the logits of one chip's rows with all others, let alone those of the batch.
    assert plan.memory.workspace + plan.memory.activations < ROWS // 4 * ROWS * 4


def test_gradients_are_those_of_what_is_trained(config):
    experiment = Experiment(config, devices=jax.devices()[:4])
    encoder = experiment.abstract_state.params["encoder"]
    image = compiled.shard_bytes(jax.tree.leaves(encoder["image"]))
    everything = compiled.shard_bytes(jax.tree.leaves(encoder))
    assert compiled.micro_gradients(experiment) == everything - image


def test_a_search_sets_both_towers(config):
    candidate = search.Candidate(1, 4, 1, 2, "dots")
    made = candidate.apply(config, 1)
    assert (made.model.image.remat, made.model.text.remat) == ("dots", "dots")
    assert "--config.model.image.remat=dots --config.model.text.remat=dots" in candidate.flags(
        config.model
    )
    made.model.text.remat = "none"
    experiment = Experiment(made, devices=jax.devices()[:4])
    assert compiled.remat_of(experiment) == "dots, none"
    assert counted.kept(experiment).bytes > 0
