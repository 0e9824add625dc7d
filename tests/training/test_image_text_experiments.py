"""Experiments on images with texts: what a locked tower leaves out, and parts that do not fit."""

import copy

import jax
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.training.describe import describe
from encoders.training.experiment import Experiment

SIZE = {"width": 16, "depth": 2, "mlp_dim": 20, "num_heads": 2}
CONFIG = {
    "model": {
        "name": "towers",
        "image": {"name": "vit", **SIZE, "patch_size": 4},
        "text": {"name": "clip_text", **SIZE, "vocab_size": 30, "max_length": 6},
        "logit_bias": -10.0,
    },
    "objective": {"name": "sigmoid_contrast"},
    "preprocessing": {
        "name": "image_text",
        "image": {"image_size": (8, 8)},
        "text": {
            "tokenizer": "nowhere.json",
            "max_length": 6,
            "vocabulary": dict(size=30, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4),
        },
    },
    "data": {"source": {"name": "sample"}, "transforms": [{"name": "tokenize"}]},
    "optimizer": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
    "batch_size": 16,
    "duration": {"steps": 2},
    "hardware": {"micro_batches": 2},
}


def experiment(**changes):
    """The experiment with fields, 'model.locked' written model__locked, set."""
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        section = config
        for name in parents:
            section = section[name]
        section[leaf] = value
    return Experiment(config, devices=jax.devices()[:2])


def step_of(experiment):
    state = experiment.create_state()
    before = jax.device_get(state.params)
    rows = np.random.default_rng(0)
    batch = {
        "image": rows.integers(0, 256, (16, 8, 8, 3), np.uint8),
        "ids": rows.integers(5, 30, (16, 6)).astype(np.int32),
        "segments": np.ones((16, 6), np.int32),
        "row": np.arange(16, dtype=np.int32),
    }
    state, metrics = experiment.step()(state, batch)
    return before, jax.device_get(state.params), jax.device_get(metrics)


def test_locking_a_tower_is_one_line():
    """No optimizer state, no gradient, no decay; all else is trained."""
    locked = experiment(model__locked=("image",), optimizer__weight_decay=0.1)
    free = experiment()
    moments = jax.tree.leaves(locked.abstract_state.opt_state)
    image = jax.tree.leaves(free.param_shapes["encoder"]["image"])
    everything = jax.tree.leaves(free.abstract_state.opt_state)
    size = sum(leaf.size for leaf in everything) - sum(leaf.size for leaf in moments)
    assert size == 2 * sum(leaf.size for leaf in image)
    before, after, metrics = step_of(locked)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)["encoder"]
    assert all(jax.tree.leaves(same.pop("image")))
    assert not any(jax.tree.leaves((same["text"]["blocks_1"], same["logit_bias"])))
    assert metrics["finite"].all()
    assert metrics["loss"][1] == metrics["image_to_text"][1] == 16
    assert metrics["logit_bias"] == (-10, 1)
    assert locked.flops_per_example() < free.flops_per_example()


def test_every_field_of_both_towers_is_shown():
    text = describe(experiment(model__locked=("image",)))
    assert "model.image.name = 'vit'" in text
    assert "model.image.patch_size = 4" in text
    assert "model.text.max_length = 6" in text
    assert "model.locked = ('image',)" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("encoder/")}
    assert "frozen" in rows["encoder/image/norm/scale"]
    assert "frozen" not in rows["encoder/text/norm/scale"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__text__vocab_size": 29}, "29 is less than the 30 ids"),
        ({"preprocessing__text__max_length": 7}, "7 tokens are more than the 6"),
        ({"model__image__width": 24}, "give vectors of 24 for image and 16 for text"),
        ({"model__embedding_dim": 8}, "where 8 is expected"),
        ({"model__locked": ("txt",)}, "unknown tower 'txt'. Did you mean 'text'?"),
        ({"model__image__name": "clip"}, "model.image.name: unknown name 'clip'"),
        ({"objective__duplicate": True}, "Did you mean 'duplicates'?"),
        ({"model": CONFIG["model"]["text"]}, "got what prepares 'image_text'"),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence(changes, words):
    with pytest.raises(ConfigError) as found:
        _ = experiment(**changes).param_shapes
    assert words in str(found.value)
    assert "\n" not in str(found.value)
