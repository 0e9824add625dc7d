"""What must hold for any text encoder: masks, scan, sharing, dropout, FLOPs, sizes, errors."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.encoder import TextEncoder
from encoders.errors import ConfigError, DataError
from encoders.layers.attention import Attention
from encoders.layers.block import Block
from encoders.layers.mlp import Mlp
from encoders.layers.stack import stack_layers, unstack_layers
from encoders.models import MODELS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "text"
FAMILIES = ("albert", "bert", "deberta", "distilbert", "electra", "modernbert", "roberta")
TINY = {
    "width": 12,
    "depth": 3,
    "mlp_dim": 20,
    "num_heads": 3,
    "embedding_dim": 8,
    "vocab_size": 23,
    "max_length": 9,
}
IDS = np.random.default_rng(0).integers(5, 23, (3, 7)).astype(np.int32)
MASK = np.arange(7) < np.array([7, 4, 0])[:, None]


@functools.cache
def tiny(name, **fields):
    """A text encoder and variables in which nothing is zero or one."""
    model = config.build(MODELS, {"name": name, **TINY, **fields}, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(1), IDS)
    rng = np.random.default_rng(2)  # numpy, which compiles nothing
    return model, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "name, variant",
    [(name, variant) for name in FAMILIES for variant in MODELS[name].SIZES],
)
def test_published_sizes_have_the_parameters_of_transformers(name, variant):
    """With the pooler, which transformers gives even to a RoBERTa that was trained without."""
    pool = {"pool": "pooler"} if name == "roberta" else {}
    fields = {"name": name, "variant": variant, "scan": True, **pool}
    model = config.build(MODELS, fields, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    counted = json.loads((GOLDEN / "parameters.json").read_text())[name]
    assert set(counted) == set(MODELS[name].SIZES)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == counted[variant]


@pytest.mark.parametrize("name, pool", [("bert", "pooler"), ("roberta", "mean")])
def test_padding_changes_nothing(name, pool):
    model, variables = tiny(name, pool=pool, depth=1)
    pad_id = model.pad_id or 0
    apply = jax.jit(model.apply)
    padded = apply(variables, np.where(MASK, IDS, pad_id), mask=MASK)
    alone = apply(variables, IDS[1:2, :4])
    close(padded.tokens[1, :4], alone.tokens[0])
    close(padded.pooled[1], alone.pooled[0])
    # A row of only padding is finite, and so are gradients through it.
    assert np.isfinite(padded.tokens).all()
    assert np.isfinite(padded.pooled).all()

    @jax.jit
    def gradients(variables):
        def loss(variables):
            out = model.apply(variables, IDS, mask=MASK)
            return jnp.square(out.tokens).sum() + jnp.square(out.pooled).sum()

        return jax.grad(loss)(variables)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(variables)))


def test_positions_of_roberta_skip_padding():
    model, variables = tiny("roberta", depth=1)
    before = np.array([[1, 1, *IDS[0, :5]]], np.int32)
    out = jax.jit(model.apply)(variables, before, mask=before != 1)
    close(out.tokens[0, 2:], jax.jit(model.apply)(variables, IDS[:1, :5]).tokens[0])


def test_an_id_beyond_the_vocabulary_is_not_some_other_word():
    model, variables = tiny("bert", depth=1)
    ids = IDS.copy()
    ids[0, 3] = 23
    out = jax.jit(model.apply)(variables, ids)
    assert np.isnan(out.tokens[0]).any()
    assert np.isfinite(out.tokens[1:]).all()


@pytest.mark.parametrize("name, remat", [("bert", "none"), ("albert", "full")])
def test_scan_computes_the_same(name, remat):
    model, variables = tiny(name, depth=2)
    params = variables["params"]
    scanned = model.clone(scan=True, remat=remat)
    # A shared block is one block either way.
    stacked = params if name == "albert" else stack_layers(params)
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), IDS)["params"]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, stacked)

    def loss(model, params):
        out = model.apply({"params": params}, IDS, mask=MASK, layers=(0, -1))
        return jnp.square(out.pooled).sum(), out

    both = [
        jax.jit(jax.value_and_grad(functools.partial(loss, m), has_aux=True))(p)
        for m, p in ((model, params), (scanned, stacked))
    ]
    ((_, plain), gradients), ((_, other), others) = both
    close(plain.tokens, other.tokens)
    for layer in (0, 1):
        close(plain.hidden[layer], other.hidden[layer])
    others = others if name == "albert" else unstack_layers(others)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), gradients, others)


@pytest.mark.parametrize("scan", [False, True])
def test_layers_that_share_parameters_draw_dropout_of_their_own(scan):
    model, variables = tiny("albert", depth=2, scan=scan, dropout=0.5)

    def only_bias(path, leaf):
        """The network adds ten where dropout keeps it, and normalises: signs tell what was kept."""
        module, name = (key.key for key in path[-2:])
        if name == "scale":
            return np.ones_like(leaf)
        return np.full_like(leaf, 10.0 * (module == "fc2" and name == "bias"))

    variables = jax.tree_util.tree_map_with_path(only_bias, variables)
    apply = jax.jit(functools.partial(model.apply, train=True, layers="all"))
    out = apply(variables, IDS, rngs={"dropout": jax.random.key(0)})
    same = (np.asarray(out.hidden[0]) > 0) == (np.asarray(out.hidden[1]) > 0)
    assert 0.3 < same.mean() < 0.7


def test_dropout_stands_where_bert_has_it():
    """On what the MLP returns, not after its activation; and on the attention's weights."""
    x = np.random.default_rng(1).normal(size=(2, 4, 12)).astype(np.float32)
    rngs = {"dropout": jax.random.key(2)}

    def plain_and_dropped(module):
        variables = jax.jit(module.init)(jax.random.key(0), x)
        dropped = jax.jit(functools.partial(module.apply, train=True))(variables, x, rngs=rngs)
        return np.asarray(jax.jit(module.apply)(variables, x)), np.asarray(dropped)

    plain, dropped = plain_and_dropped(Mlp(20, dropout=0.5, hidden_dropout=0.0))
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    close(dropped[kept], 2 * plain[kept])
    plain, dropped = plain_and_dropped(Attention(3, attention_dropout=0.5))
    assert np.abs(dropped - plain).min() > 0  # no output is dropped, all are changed


def test_a_parallel_block_is_not_post_norm():
    block = Block(num_heads=3, mlp_dim=20, parallel=True, post_norm=True)
    with pytest.raises(ConfigError, match="a block that is parallel has its norm first"):
        block.init(jax.random.key(0), np.ones((1, 4, 12), np.float32))


def test_flops_count_every_product():
    model, _ = tiny("albert", pool="pooler")
    d, t, m, e, layers = 12, 7, 20, 8, 3
    block = 4 * 2 * t * d * d + 2 * 2 * t * t * d + 2 * 2 * t * d * m
    assert model.flops(t) == layers * block + 2 * t * e * d + 2 * d * d


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"variant": "bas"}, "model.variant: unknown size 'bas'. Did you mean 'base'"),
        ({"num_heads": 5}, "num_heads: 5 does not divide the width 12"),
        ({"max_length": 6}, "model.max_length: 7 tokens are more than the 6"),
        ({"pool": "max"}, "model.pool: unknown value 'max'"),
        ({"vocab": 9}, "model.vocab: unknown field. Did you mean 'vocab_size'"),
    ],
)
def test_wrong_fields_are_one_sentence(fields, message):
    def build_and_init():
        model = config.build(MODELS, {"name": "bert", **TINY, **fields}, "model")
        jax.eval_shape(model.init, jax.random.key(0), IDS)

    with pytest.raises(ConfigError, match=message):
        build_and_init()


def test_a_model_without_token_types_takes_none():
    model, variables = tiny("distilbert")
    with pytest.raises(ConfigError, match="DistilBERT has no token types"):
        model.apply(variables, IDS, token_types=np.zeros_like(IDS))
    with pytest.raises(DataError, match="token_types: a DistilBERT has none"):
        TextEncoder(model, variables)(IDS, token_types=np.zeros_like(IDS))


def test_images_are_refused():
    model, variables = tiny("bert")
    with pytest.raises(ConfigError, match=r"encodes integer ids \[B, T\], not float32 \[1, 8, 8"):
        model.apply(variables, np.zeros((1, 8, 8, 3), np.float32))


@pytest.mark.parametrize(
    "ids, rest, error, message",
    [
        (IDS[0], {}, DataError, r"got one text \(7,\); add the batch axis, ids\[None\]"),
        (IDS[None], {}, DataError, r"ids: expected a batch \[B, T\], got \(1, 3, 7\)"),
        (IDS[:, :0], {}, DataError, r"ids: expected a batch \[B, T\], got \(3, 0\)"),
        (IDS.astype(np.float32), {}, DataError, "ids: expected integers, got float32"),
        (IDS + 18, {}, DataError, r"is not in the vocabulary, which goes from 0 to 22"),
        (IDS - 30, {}, DataError, r"ids: -\d+ is not in the vocabulary"),
        (np.tile(IDS, 2), {}, ConfigError, "14 tokens are more than the 9 that there are"),
        (IDS, {"token_types": IDS}, DataError, "is not in the token types, .* from 0 to 1"),
        (IDS, {"token_types": IDS[:2]}, DataError, r"shape of ids, \(3, 7\), got \(2, 7\)"),
        (IDS, {"mask": MASK[:, :5]}, DataError, r"mask: expected the shape of ids, \(3, 7\)"),
        (IDS, {"mask": IDS}, DataError, "mask: expected True where a token is real and False"),
        (IDS, {"layers": (3,)}, ConfigError, "there is no layer 3; the encoder has 3"),
    ],
)
def test_wrong_inputs_are_one_sentence(ids, rest, error, message):
    with pytest.raises(error, match=message) as caught:
        TextEncoder(*tiny("bert"))(ids, **rest)
    assert "\n" not in str(caught.value)


def test_masks_of_tokenizers_are_taken():
    encoder = TextEncoder(*tiny("bert"))
    ids = IDS.astype(np.int64)
    out = encoder(ids, mask=MASK.astype(np.int64), token_types=np.ones_like(ids), layers=(-1,))
    close(out.tokens, encoder(IDS, mask=MASK, token_types=np.ones_like(IDS)).tokens, 0)
    assert out.mask.dtype == bool
    assert set(out.hidden) == {2}
