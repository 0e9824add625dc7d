"""DeBERTa-v3: buckets, shifted scores, packed rows, and the decoder of masked tokens.

tests/golden/deberta.npz is written by `python -m tools.golden.write_deberta`; outputs and gradients
of the encoder are compared with transformers' in tests/checkpoints/formats/test_text_golden.py.
"""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders import config
from encoders.checkpoints.formats import files
from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError
from encoders.layers.disentangled import log_buckets, relative_rows, relative_scores
from encoders.layers.stack import stack_layers, unstack_layers
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from encoders.objectives.corruption import Corrupted
from encoders.rules import unflatten

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = {
    "width": 12,
    "depth": 2,
    "mlp_dim": 20,
    "num_heads": 3,
    "embedding_dim": 8,
    "vocab_size": 23,
    "max_length": 12,
    "position_buckets": 4,
    "max_distance": 9,
    "mask_decoder": True,
}
IDS = np.random.default_rng(0).integers(5, 23, (2, 12)).astype(np.int32)
# Two texts and padding; and a row of nothing else.
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0], [0] * 12], np.int32)


@functools.cache
def golden():
    with np.load(GOLDEN / "deberta.npz") as file:
        return unflatten(dict(file))


def gradients_of(name):
    """Under transformers' names, which have dots."""
    with np.load(GOLDEN / "deberta.npz") as file:
        prefix = f"{name}/gradients/"
        return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


@functools.cache
def tiny(**fields):
    model = config.build(MODELS, {"name": "deberta", **TINY, **fields}, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(1), IDS)["params"]
    rng = np.random.default_rng(2)
    return model, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_buckets_are_those_of_transformers():
    for name, want in golden()["buckets"].items():
        number, furthest = map(int, name.split("_"))
        found = log_buckets(np.arange(-700, 701), number, furthest)
        np.testing.assert_array_equal(found, want)
        assert found[700 + furthest - 1] == number - 1


@pytest.mark.parametrize("length, chunk", [(1, 4), (2, 4), (7, 4), (12, 4), (12, 1)])
def test_scores_by_distance_become_scores_by_pair(length, chunk):
    used, rows = relative_rows(length, 4, 9)
    distance = np.arange(length)[:, None] - np.arange(length)
    table = np.arange(8)[used]  # the table of [2 S] rows holds its own row numbers
    want = np.clip(log_buckets(distance, 4, 9) + 4, 0, 7)
    x = np.arange(1, length + 1, dtype=np.float32)[None, :, None, None]
    scores = relative_scores(x, table[rows[::-1], None, None].astype(np.float32), chunk)
    np.testing.assert_array_equal(scores[0, 0], want * x[0, :, 0])
    scores = relative_scores(x, table[rows, None, None].astype(np.float32), chunk)
    np.testing.assert_array_equal(scores[0, 0].T, want * x[0, :, 0, 0])
    assert set(table) == set(want.ravel())  # no row is projected in vain


def test_the_mask_decoder_is_the_last_layer_twice(tmp_path):
    want = golden()["mask_decoder"]
    encoder = encoders.load(GOLDEN / "text" / "deberta")
    module = encoder.module.clone(mask_decoder=True)
    params = {**encoder.variables["params"], "mask_positions": want["positions"]}
    ids = want["inputs"]["input_ids"].astype(np.int32)
    mask = want["inputs"]["attention_mask"] == 1

    @jax.jit
    def run(params):
        def loss(params):
            tokens = module.apply({"params": params}, ids, mask=mask).tokens
            return (tokens * want["cotangent"]).sum(), tokens

        return jax.grad(loss, has_aux=True)(params)

    gradients, tokens = run(params)
    close(tokens, want["tokens"], 5e-6)
    carrier = dataclasses.replace(encoder, module=module, variables={"params": gradients})
    encoders.save(carrier, tmp_path / "out", format="hf")
    ours = files.read_tensors(tmp_path / "out")
    theirs = gradients_of("mask_decoder")
    assert set(ours) == set(theirs)
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)
    assert encoders.load(tmp_path / "out").module == module


@pytest.mark.parametrize("name", ["deberta_mlm", "deberta_untied"])
def test_scores_loss_and_gradients_of_masked_tokens(name, tmp_path):
    want = golden()[name]
    encoder = encoders.load(GOLDEN / "text" / name)
    assert encoder.metadata["dropped"] == {}
    vocabulary = Vocabulary(size=23, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
    context = {"encoder": encoder.module, "vocabulary": vocabulary}
    objective = config.build(OBJECTIVES, encoder.objective, "objective", **context)
    ids = want["inputs"]["input_ids"].astype(np.int32)
    batch = {"ids": ids, "segments": want["inputs"]["attention_mask"].astype(np.int32)}
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    weights = want["hidden"].astype(np.float32)
    corrupted = Corrupted(ids, places, want["labels"].astype(np.int32), weights)

    @jax.jit
    def run(params):
        def loss(params):
            return objective.apply({"params": params}, batch, corrupted, method="loss").loss

        def scores(module):
            return module.scores(module.encode(batch))

        variables = {"params": params}
        return jax.grad(loss)(params), nn.apply(scores, objective)(variables)

    gradients, scores = run({"encoder": encoder.variables["params"], **encoder.heads})
    real = batch["segments"] > 0
    close(np.where(real[..., None], scores, 0), np.where(real[..., None], want["logits"], 0))
    carrier = dataclasses.replace(
        encoder, variables={"params": gradients.pop("encoder")}, heads=gradients
    )
    encoders.save(carrier, tmp_path / "out", format="hf", heads=True)
    ours = files.read_tensors(tmp_path / "out")
    theirs = gradients_of(name)
    unused = {"cls.predictions.bias"}  # untied, transformers adds the decoder's bias
    assert set(ours) - unused == set(theirs)
    ours["deberta.embeddings.word_embeddings.weight"][0] = theirs[
        "deberta.embeddings.word_embeddings.weight"
    ][0]  # PyTorch's lookup gives the padding token none
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=5e-5, err_msg=key)


@functools.cache
def packed():
    """Outputs for packed rows, and gradients of a function of the real tokens."""
    model, params = tiny()
    weight = np.random.default_rng(3).normal(size=(*IDS.shape, 12)) * (SEGMENTS > 0)[..., None]

    def loss(params, ids, segments, weight):
        out = model.apply({"params": params}, ids, segments=segments)
        return (out.tokens * weight).sum(), out.tokens

    grad = jax.jit(jax.grad(loss, has_aux=True))
    return grad, weight, grad(params, IDS, SEGMENTS, weight)


def test_packed_texts_are_encoded_as_if_alone():
    _, params = tiny()
    grad, weight, (gradients, tokens) = packed()
    total = jax.tree.map(np.zeros_like, params)
    for start, stop in ((0, 5), (5, 11)):
        alone = np.zeros_like(IDS), np.zeros_like(SEGMENTS), np.zeros_like(weight)
        for whole, source in zip(alone, (IDS, SEGMENTS, weight), strict=True):
            whole[0, : stop - start] = source[0, start:stop]
        gradient, found = grad(params, alone[0], np.minimum(alone[1], 1), alone[2])
        close(tokens[0, start:stop], found[0, : stop - start])
        total = jax.tree.map(np.add, total, gradient)
    jax.tree.map(close, gradients, total)


def test_rows_of_padding_are_finite():
    _, _, (gradients, tokens) = packed()
    assert np.isfinite(tokens).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_scan_and_remat_compute_the_same():
    model, params = tiny()
    _, weight, (gradients, tokens) = packed()
    scanned = model.clone(scan=True, remat="full")

    @jax.jit
    def run(params):
        def loss(params):
            out = scanned.apply({"params": params}, IDS, segments=SEGMENTS)
            return (out.tokens * weight).sum(), out.tokens

        return jax.grad(loss, has_aux=True)(params)

    others, found = run(stack_layers(params))
    close(tokens, found)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), gradients, unstack_layers(others))


def test_scores_are_float32_where_the_rest_has_16_bits():
    model, params = tiny(mask_decoder=False)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)

    def apply(params):
        return model.apply({"params": params}, IDS, segments=SEGMENTS, train=True, rngs=rngs)

    rngs = {"dropout": jax.random.key(0)}
    out = jax.eval_shape(apply, half)
    assert out.tokens.dtype == jnp.bfloat16
    text = str(jax.make_jaxpr(apply)(half))
    scores = f"f32[{IDS.shape[0]},3,12,12]"
    assert f"{scores} = exp" in text or f":{scores} = exp" in text
    assert f"bf16[{IDS.shape[0]},3,12,12] = exp" not in text


def test_dropout_of_the_mask_decoder_differs_by_layer_and_key():
    model, params = tiny(depth=1)
    apply = jax.jit(functools.partial(model.apply, {"params": params}, IDS, train=True))
    one, same, other = (apply(rngs={"dropout": jax.random.key(k)}).tokens for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


def test_flops_count_every_product():
    model, _ = tiny(mask_decoder=False)
    d, t, m, e, layers = 12, 12, 20, 8, 2
    rows = 8  # texts as long as this use the whole table
    block = 4 * 2 * t * d * d + 2 * 2 * t * t * d + 2 * 2 * t * rows * d + 2 * 2 * t * d * m
    assert model.flops(t) == layers * block + 2 * t * e * d
    assert model.clone(mask_decoder=True).flops(t) == (layers + 1) * block + 2 * t * e * d


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_heads": 5}, "num_heads: 5 does not divide the width 12"),
        ({"max_length": 6}, "model.max_length: 12 tokens are more than the 6"),
        ({"attention_kernel": "fused"}, "model.attention_kernel: unknown value 'fused'"),
        ({"position_buckets": 5}, "model.position_buckets: 5 is not an even number"),
        (
            {"max_distance": 3},
            "model.max_distance: 3 leaves no distances for the far half of the 4",
        ),
    ],
)
def test_wrong_fields_are_one_sentence(fields, message):
    def build_and_init():
        model = config.build(MODELS, {"name": "deberta", **TINY, **fields}, "model")
        jax.eval_shape(model.init, jax.random.key(0), IDS)

    with pytest.raises(ConfigError, match=message):
        build_and_init()
