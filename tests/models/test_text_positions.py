"""What must hold for every kind of positions: packing, padding, scan, bf16, FLOPs, styles."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.checkpoints.formats import hf
from encoders.checkpoints.formats.mapping import Exported
from encoders.errors import CheckpointError, ConfigError
from encoders.layers.stack import stack_layers
from encoders.loading import section_of
from encoders.models import MODELS
from encoders.objectives.heads import VocabularyHead

TINY = {"width": 12, "depth": 1, "mlp_dim": 10, "num_heads": 3, "vocab_size": 23, "max_length": 11}
MOSAIC = {"positions": "alibi", "mlp": "geglu", "mlp_bias": False}
CRAMMED = {
    "positions": "sinusoidal",
    "pre_norm": True,
    **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "norm_bias"), False),
}
CASES = {
    "learned": {"name": "bert"},
    "roberta": {"name": "roberta"},
    "sinusoidal": {"name": "bert", **CRAMMED},
    "relative_bias": {"name": "bert", "positions": "relative_bias", "pre_norm": True, "depth": 2},
    "rotary": {"name": "bert", "positions": "rotary", "mlp": "swiglu"},
    "alibi": {"name": "bert", **MOSAIC},
    "none": {"name": "bert", "positions": "none"},
    "modernbert": {"name": "modernbert", "window": 4, "depth": 3},
}
A, B = np.array([6, 9, 14, 5, 20]), np.array([7, 19, 8, 22])
# Two texts in one row, each in its own, a row of only padding.
ROWS = [
    ([*A, *B, 0, 0], [1] * 5 + [2] * 4 + [0] * 2),
    ([*A, *[0] * 6], [1] * 5 + [0] * 6),
    ([*B, *[0] * 7], [1] * 4 + [0] * 7),
    ([0] * 11, [0] * 11),
]
IDS, SEGMENTS = (np.array(x, np.int32) for x in zip(*ROWS, strict=True))


@functools.cache
def tiny(case, **fields):
    """A text encoder and variables in which nothing is zero or one."""
    model = config.build(MODELS, {**TINY, **CASES[case], **fields}, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(1), IDS)
    rng = np.random.default_rng(2)  # numpy, which compiles nothing
    return model, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@functools.cache
def compiled(case, scan=False):
    """(params, cotangent) -> tokens, and the gradient of sum(tokens * cotangent)."""
    model = tiny(case)[0].clone(scan=scan, remat="full" if scan else "none")

    def loss(params, cotangent):
        out = model.apply({"params": params}, IDS, segments=SEGMENTS)
        return (out.tokens * cotangent).sum(), out.tokens

    function = jax.jit(jax.grad(loss, has_aux=True))
    return lambda *arguments: function(*arguments)[::-1]


@pytest.mark.parametrize("case", CASES)
def test_packed_texts_are_as_if_alone(case):
    """Outputs and gradients; and so padding changes nothing, and makes no NaN."""
    params, run = tiny(case)[1]["params"], compiled(case)
    cotangent = np.random.default_rng(3).normal(size=(*IDS.shape, 12)).astype(np.float32)
    packed, alone = cotangent * (SEGMENTS > 0)[..., None], np.zeros_like(cotangent)
    packed[1:] = 0
    alone[1, :5], alone[2, :4] = packed[0, :5], packed[0, 5:9]
    tokens, gradients = run(params, packed)
    close(tokens[0, :5], tokens[1, :5])
    close(tokens[0, 5:9], tokens[2, :4])
    assert np.isfinite(tokens).all()
    _, others = run(params, alone)
    jax.tree.map(close, gradients, others)
    _, others = run(params, cotangent)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(others))


@pytest.mark.parametrize("case", ["relative_bias", "modernbert"])
def test_a_mask_does_what_segments_do(case):
    model, variables = tiny(case)
    tokens, _ = compiled(case)(variables["params"], np.ones((*IDS.shape, 12), np.float32))
    masked = jax.jit(model.apply)(variables, IDS[1:2], mask=SEGMENTS[1:2] > 0).tokens
    close(masked[0, :5], tokens[0, :5])


@pytest.mark.parametrize("case", ["relative_bias", "rotary", "alibi", "modernbert"])
def test_only_distances_matter(case):
    """Counting from elsewhere changes nothing, spreading the tokens out does."""
    model, variables = tiny(case)
    apply = jax.jit(lambda ids, positions: model.apply(variables, ids, positions=positions).tokens)
    counted, ids = np.arange(5, dtype=np.int32)[None], IDS[1:2, :5]
    first = apply(ids, counted)
    close(first, apply(ids, counted + 6))
    assert np.abs(first - apply(ids, 2 * counted)).max() > 1e-3


def test_scan_computes_the_same():
    """ModernBERT's layers, of two kinds, are scanned in the test of its golden values."""
    case = "relative_bias"
    model, variables = tiny(case)
    params = stack_layers(variables["params"])
    shapes = jax.eval_shape(model.clone(scan=True).init, jax.random.key(0), IDS)["params"]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)
    cotangent = np.ones((*IDS.shape, 12), np.float32)
    tokens, gradients = compiled(case)(variables["params"], cotangent)
    others, other_gradients = compiled(case, scan=True)(params, cotangent)
    close(tokens, others)
    jax.tree.map(functools.partial(close, atol=1e-4), stack_layers(gradients), other_gradients)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_sixteen_bits_stay_sixteen_bits(case, scan):
    model = tiny(case)[0].clone(scan=scan)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes)
    out = jax.eval_shape(functools.partial(model.apply, segments=SEGMENTS), half, IDS)
    assert out.tokens.dtype == jnp.bfloat16


@pytest.mark.parametrize("scan", [False, True])
def test_local_layers_may_drop_weights(scan):
    """Traced only: that dropout is drawn outside of what chooses between local and global."""
    model = tiny("modernbert")[0].clone(scan=scan, attention_dropout=0.1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
    apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    assert jax.eval_shape(apply, shapes, IDS).tokens.shape == (*IDS.shape, 12)


def test_sixteen_bits_are_about_right():
    """Kinds that add large numbers to the scores do so in 32 bits."""
    model, variables = tiny("alibi")
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), variables)
    apply = jax.jit(lambda variables: model.apply(variables, IDS, segments=SEGMENTS).tokens)
    real = SEGMENTS > 0
    close(apply(half).astype(np.float32)[real], apply(variables)[real], 0.1)


@pytest.mark.parametrize("case", CASES)
def test_flops_count_every_matrix_product(case):
    model, variables = tiny(case)
    jaxpr = jax.make_jaxpr(model.apply)(variables, IDS[:1])
    assert model.flops(IDS.shape[1]) == products(jaxpr.jaxpr)


def products(jaxpr):
    """Twice the multiply-adds of all matrix products."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += products(inner) if hasattr(inner, "eqns") else 0
    return total


def test_styles_of_published_models():
    """No biases where there are to be none, one table for all layers, a final norm."""
    _, variables = tiny("sinusoidal")
    names = {"/".join(str(key.key) for key in path) for path, _ in paths(variables["params"])}
    assert not any(name.endswith("bias") for name in names if not name.startswith("pooler"))
    assert "norm/scale" in names
    assert "embeddings/positions" not in names
    _, variables = tiny("relative_bias")
    shapes = [
        np.shape(leaf) for path, leaf in paths(variables["params"]) if "relative" in str(path)
    ]
    assert shapes == [(32, 3)]
    _, variables = tiny("alibi")
    assert set(variables["params"]["blocks_0"]["mlp"]) == {"gate", "fc1", "fc2"}
    assert set(variables["params"]["blocks_0"]["mlp"]["fc2"]) == {"kernel"}
    _, variables = tiny("modernbert")
    assert "norm1" not in variables["params"]["blocks_0"]
    assert "norm1" in variables["params"]["blocks_1"]


def paths(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def test_heads_take_the_activation_of_the_gate():
    assert VocabularyHead().options(tiny("alibi")[0])["activation"] == "gelu"
    assert VocabularyHead().options(tiny("rotary")[0])["activation"] == "silu"
    options = VocabularyHead().options(tiny("modernbert")[0])
    assert not options["dense_bias"]
    assert not options["norm_bias"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "bert", "positions": "rotery"}, "model.positions: unknown value 'rotery'"),
        ({"name": "modernbert", "positions": "alibi"}, "model.positions: unknown value 'alibi'"),
        ({"name": "modernbert", "shared": True}, "model.shared: unknown value True"),
        ({"name": "bert", "positions": "rotary", "num_heads": 4}, "need an even size, got 3"),
        ({"name": "modernbert", "window": 1}, "model.window: 1 leaves no token on either side"),
        ({"name": "bert", "mlp": "reglu"}, "model.mlp: unknown value 'reglu'"),
    ],
)
def test_wrong_fields_are_one_sentence(fields, message):
    def build_and_init():
        model = config.build(MODELS, {**TINY, **fields}, "model")
        jax.eval_shape(model.init, jax.random.key(0), IDS)

    with pytest.raises(ConfigError, match=message):
        build_and_init()


@pytest.mark.parametrize(
    "case, message",
    [
        ("rotary", "positions='rotary' cannot be expressed for bert: there it is 'learned'"),
        ("sinusoidal", "positions='sinusoidal' cannot be expressed for bert"),
    ],
)
def test_options_that_bert_has_not_in_transformers_are_refused(case, message, tmp_path):
    model, variables = tiny(case)
    exported = Exported(section_of(MODELS, model), variables["params"])
    with pytest.raises(CheckpointError, match=message):
        hf.write(tmp_path, exported)
