"""DeBERTa directories: files of the authors', and what of version 2 is not there."""

import json
import pathlib

import chex
import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "text"


def copied(directory, name, config=None, tensors=None):
    """A golden directory with other fields of its config and further tensors; None leaves out."""
    fields = json.loads((GOLDEN / name / "config.json").read_text()) | (config or {})
    files.write_json(directory / "config.json", {k: v for k, v in fields.items() if v is not None})
    held = files.read_tensors(GOLDEN / name) | (tensors or {})
    files.write_tensors(directory / "model.safetensors", held)
    return directory


def test_the_authors_files_hold_both_heads_and_absolute_positions(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        "dense.weight": (12, 12),
        "dense.bias": (12,),
        "LayerNorm.weight": (12,),
        "LayerNorm.bias": (12,),
        "classifer.weight": (1, 12),  # spelt so in their code
        "classifer.bias": (1,),
    }
    extra = {
        f"mask_predictions.{name}": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    extra["deberta.embeddings.position_embeddings.weight"] = np.ones((11, 12), np.float32)
    # Their config says it in one string, and leaves out what transformers adds.
    config = {"pos_att_type": "p2c|c2p", "legacy": None, "type_vocab_size": 0}
    found = encoders.load(copied(tmp_path, "deberta_mlm", config, extra))
    assert found.objective == {"name": "replaced_token"}
    score = extra["mask_predictions.classifer.weight"].T
    np.testing.assert_array_equal(found.heads["head"]["score"]["kernel"], score)
    assert {name.split(".")[0] for name in found.metadata["dropped"]} == {
        "embeddings",
        "lm_predictions",
    }
    plain = encoders.load(GOLDEN / "deberta_mlm")
    assert found.module == plain.module
    chex.assert_trees_all_equal(found.variables, plain.variables)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"relative_attention": False}, "relative_attention=False is not supported, only True of"),
        ({"position_biased_input": None}, "position_biased_input=True is not supported"),
        ({"share_att_key": None}, "share_att_key=False is not supported"),
        ({"norm_rel_ebd": None}, "norm_rel_ebd='none' is not supported, only 'layer_norm'"),
        ({"conv_kernel_size": 3}, "conv_kernel_size=3 is not supported, only 0"),
        ({"type_vocab_size": 2}, "type_vocab_size=2 is not supported"),
        ({"pos_att_type": "c2p"}, r"pos_att_type=\['c2p'\] is not supported"),
        ({"position_buckets": None}, "position_buckets=-1 is not supported, only even numbers"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        ({"position_buckets": 6}, r"rel_embeddings.weight is \(8, 12\), not \(12, 12\)"),
    ],
)
def test_what_is_not_version_3_is_refused(config, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        encoders.load(copied(tmp_path, "deberta", config))


@pytest.mark.parametrize("field, value", [("shared", True), ("qkv_bias", False)])
def test_what_it_has_not_is_refused(field, value, tmp_path):
    encoder = encoders.load(GOLDEN / "deberta")
    changed = type(encoder)(encoder.module.clone(**{field: value}), encoder.variables)
    with pytest.raises(CheckpointError, match=f"{field}={value} cannot be expressed for deberta"):
        encoders.save(changed, tmp_path / "out", format="hf")
