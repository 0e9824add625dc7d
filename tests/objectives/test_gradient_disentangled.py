"""DeBERTa-v3's replaced-token detection: which loss trains which table, and what the encoder is.

What replaced-token detection has in common for all encoders is tested in test_replaced_token.py.
"""

import functools

import chex
import jax
import numpy as np
import pytest

import encoders
from encoders import config
from encoders.checkpoints.formats import files
from encoders.data.vocabulary import Vocabulary
from encoders.encoder import TextEncoder
from encoders.errors import CheckpointError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES

MODEL = {
    "name": "deberta",
    "width": 12,
    "depth": 1,
    "mlp_dim": 20,
    "num_heads": 3,
    "vocab_size": 23,
    "max_length": 12,
    "position_buckets": 4,
    "max_distance": 9,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
SECTION = {
    "name": "replaced_token",
    "masking": {"rate": 0.3, "mask": 1.0, "random": 0.0},
    "generator": {"width": 1.0, "depth": 1.0, "num_heads": 3},
    "weight": 10.0,
}
VOCABULARY = Vocabulary(size=23, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
IDS = np.random.default_rng(0).integers(5, 23, (2, 12)).astype(np.int32)
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0], [1] * 12], np.int32)
BATCH = {"ids": IDS, "segments": SEGMENTS}


@functools.cache
def made(sharing):
    encoder = config.build(MODELS, MODEL, "model")
    context = {"encoder": encoder, "vocabulary": VOCABULARY}
    return config.build(OBJECTIVES, {**SECTION, "sharing": sharing}, "objective", **context)


@functools.cache
def parameters():
    """Initial ones, and ones of which none is zero or one."""
    initial = jax.jit(made("gradient_disentangled").init)(jax.random.key(0), BATCH)["params"]
    rng = np.random.default_rng(1)
    return initial, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), initial)


def largest(tree):
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))


def test_each_loss_trains_a_table_of_its_own():
    objective = made("gradient_disentangled")

    def losses(params):
        metrics = objective.apply({"params": params}, BATCH).metrics
        return metrics["replaced_loss"][0], metrics["token_loss"][0]

    @jax.jit
    def both(params):
        pull = jax.vjp(losses, params)[1]
        return pull((1.0, 0.0))[0], pull((0.0, 1.0))[0]

    replaced, token = both(parameters()[1])
    assert replaced["difference"].keys() == {"words"}
    assert largest(replaced["encoder"]["embeddings"]) == 0
    assert largest(replaced["generator"]) == 0
    assert largest(replaced["difference"]) > 1e-3
    assert largest(replaced["encoder"]["relative_embeddings"]) > 1e-3
    assert largest(token["difference"]) == 0
    assert largest(token["encoder"]["embeddings"]) > 1e-3
    assert largest(token["encoder"]["relative_embeddings"]) == 0  # not shared


def test_it_starts_as_shared_embeddings():
    initial = parameters()[0]
    assert largest(initial["difference"]) == 0
    # The generator has no words of its own, but the norm behind them, and positions at the end.
    assert "embeddings" not in initial["generator"]["encoder"]
    assert initial["generator"]["encoder"]["mask_positions"].shape == (12, 12)
    shared = {name: value for name, value in initial.items() if name != "difference"}
    found = scores("gradient_disentangled")(initial, BATCH, IDS)
    want = scores("embeddings")(shared, BATCH, IDS)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


@functools.cache
def scores(sharing):
    """(params, batch, ids) -> what the discriminator says of ids."""
    objective = made(sharing)

    def apply(params, batch, ids):
        return objective.apply({"params": params}, batch, ids, method="scores")

    return jax.jit(apply)


def test_the_encoder_alone_has_the_differences_added():
    params = parameters()[1]
    alone = made("gradient_disentangled").alone(params)
    assert "difference" in params
    assert "difference" not in alone
    found = scores("embeddings")(alone, BATCH, IDS)
    want = scores("gradient_disentangled")(params, BATCH, IDS)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
    assert made("embeddings").alone(alone) is alone


def test_packed_texts_are_scored_as_if_alone():
    """Every token is scored with the first token of its own text."""
    params = parameters()[1]
    apply = scores("gradient_disentangled")
    packed = apply(params, BATCH, IDS)
    for start, stop in ((0, 5), (5, 11)):
        ids, segments = np.zeros_like(IDS), np.zeros_like(SEGMENTS)
        ids[0, : stop - start] = IDS[0, start:stop]
        segments[0, : stop - start] = 1
        found = apply(params, {"ids": ids, "segments": segments}, ids)
        np.testing.assert_allclose(
            found[0, : stop - start], packed[0, start:stop], rtol=0, atol=1e-5
        )


def encoder_of_a_run():
    objective, params = made("gradient_disentangled"), parameters()[1]
    heads = {name: value for name, value in params.items() if name != "encoder"}
    section = {**SECTION, "sharing": "gradient_disentangled"}
    variables = {"params": params["encoder"]}
    return TextEncoder(objective.encoder, variables, None, {}, section, heads), objective, params


def test_what_is_loaded_is_the_encoder_alone(tmp_path):
    encoder, objective, params = encoder_of_a_run()
    encoders.save(encoder, tmp_path / "out", heads=True)
    found = encoders.load(tmp_path / "out")
    alone = objective.alone(params)
    chex.assert_trees_all_close(found.variables["params"], alone["encoder"], atol=1e-7)
    assert "difference" not in found.heads


def test_the_discriminators_head_goes_out_and_in(tmp_path):
    encoder, _, _ = encoder_of_a_run()
    encoders.save(encoder, tmp_path / "native", heads=True)
    encoders.save(encoders.load(tmp_path / "native"), tmp_path / "hf", format="hf", heads=True)
    tensors = files.read_tensors(tmp_path / "hf")
    assert tensors["mask_predictions.classifier.weight"].shape == (1, 12)
    again = encoders.load(tmp_path / "hf")
    assert again.objective["name"] == "replaced_token"
    chex.assert_trees_all_equal(again.heads, {"head": encoder.heads["head"]})
    assert {name for name in tensors if not name.startswith("deberta.")} == {
        f"mask_predictions.{part}.{kind}"
        for part in ("LayerNorm", "dense", "classifier")
        for kind in ("weight", "bias")
    }


def test_a_head_without_context_has_no_place_there(tmp_path):
    encoder, _, _ = encoder_of_a_run()
    encoder.objective["head"] = {"context": False}
    with pytest.raises(
        CheckpointError, match=r"objective\.head\.context=False cannot be expressed"
    ):
        encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
