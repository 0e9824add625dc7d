"""What must hold for any ViT: masks, kept patches, scan, remat, FLOPs, sizes, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.errors import ConfigError
from encoders.layers.stack import stack_layers, unstack_layers
from encoders.models import MODELS
from encoders.models.vit import SIZES, ViT

TINY = {"patch_size": 4, "width": 16, "depth": 3, "mlp_dim": 32, "num_heads": 2}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)  # 2x3 patches


@functools.cache
def tiny(**fields):
    """A ViT and variables in which nothing is zero or one."""
    model = ViT(**{**TINY, **fields})
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    rng = np.random.default_rng(2)  # numpy, which compiles nothing
    noisy = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype("float32"), variables
    )
    return model, noisy


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


VARIATIONS = pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "rotary2d", "num_registers": 2, "pool": "mean"},
        {"positions": "sincos2d", "class_token": False, "pool": "map", "qk_norm": True},
    ],
    ids=["learned", "rotary", "sincos"],
)


@VARIATIONS
def test_kept_and_masked_patches(fields):
    model, variables = tiny(**fields)

    @jax.jit
    def run(mask=None, keep=None):
        return model.apply(variables, IMAGES, mask=mask, keep=keep)

    whole, prefix = run(), model.num_prefix
    assert whole.tokens.shape == (3, prefix + 6, 16)
    assert whole.num_prefix == prefix
    assert whole.mask.all()

    everything = run(keep=np.tile(np.arange(6), (3, 1)))
    close(everything.tokens, whole.tokens)
    close(everything.pooled, whole.pooled)

    # In another order the same tokens come out in that order.
    rng = np.random.default_rng(3)
    order = np.stack([rng.permutation(6) for _ in range(3)])
    shuffled = run(keep=order)
    close(shuffled.tokens[:, :prefix], whole.tokens[:, :prefix])
    patches = np.take_along_axis(whole.tokens[:, prefix:], order[..., None], axis=1)
    close(shuffled.tokens[:, prefix:], patches)

    # Masking patches out is the same as not encoding them.
    keep = order[:, :4]
    mask = np.zeros((3, 6), bool)
    np.put_along_axis(mask, keep, True, axis=1)
    masked, kept = run(mask=mask), run(keep=keep)
    close(masked.pooled, kept.pooled)
    tokens = np.take_along_axis(masked.tokens[:, prefix:], keep[..., None], axis=1)
    close(tokens, kept.tokens[:, prefix:])
    assert np.array_equal(masked.mask[:, prefix:], mask)
    assert masked.mask[:, :prefix].all()
    # A mask goes along with its patches.
    both = run(mask=mask, keep=order)
    close(both.pooled, kept.pooled)


def test_padding_to_a_larger_grid_changes_nothing():
    """Patches that a mask calls padding leave the rest as in the unpadded image."""
    model, variables = tiny(positions="sincos2d", pool="mean")
    padded = jnp.pad(IMAGES, ((0, 0), (0, 8), (0, 4), (0, 0)), constant_values=7.0)
    mask = jnp.zeros((3, 4, 4), bool).at[:, :2, :3].set(True)
    out = jax.jit(model.apply)(variables, padded, mask=mask.reshape(3, 16))
    close(out.pooled, jax.jit(model.apply)(variables, IMAGES).pooled)


@pytest.mark.parametrize("fields", [{}, {"parallel": True, "mlp": "swiglu", "layer_scale": 0.1}])
def test_scan_and_remat_compute_the_same(fields):
    model, variables = tiny(**fields, depth=2)
    unrolled = variables["params"]
    stacked = stack_layers(unrolled)
    assert set(stacked) == {*(k for k in unrolled if not k.startswith("blocks_")), "blocks"}
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), unrolled)

    def loss(model, params, train=False):
        rngs = {"dropout": jax.random.key(9)}
        out = model.apply({"params": params}, IMAGES, layers=(0, -1), train=train, rngs=rngs)
        return (out.pooled**2).sum() + (out.hidden[0] ** 2).sum(), out

    def grad(model, params, train=False):
        step = jax.jit(
            jax.value_and_grad(functools.partial(loss, model, train=train), has_aux=True)
        )
        return step(params)

    (value, out), gradients = grad(model, unrolled)
    scanned = model.clone(scan=True)
    (scan_value, scan_out), scan_gradients = grad(scanned, stacked)
    close(scan_value, value, 1e-4)
    jax.tree.map(close, scan_out, out)
    assert set(out.hidden) == {0, 1}
    jax.tree.map(lambda a, b: close(a, b, 2e-5), unstack_layers(scan_gradients), gradients)
    # Parameters of the scanned module are these, by shape.
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), IMAGES)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, stacked)
    # Drop path draws the same in both.
    (dropped, _), _ = grad(model.clone(drop_path=0.5), unrolled, train=True)
    (scan_dropped, _), _ = grad(scanned.clone(drop_path=0.5), stacked, train=True)
    close(dropped, scan_dropped, 1e-4)
    assert abs(dropped - value) > 1e-3

    if not fields:
        for remat, scan in (
            ("full", False),
            ("full", True),
            ("projections", True),
            ("dots", False),
        ):
            again = model.clone(remat=remat, scan=scan)
            (again_value, _), again_gradients = grad(again, stacked if scan else unrolled)
            close(again_value, value, 1e-4)
            again_gradients = unstack_layers(again_gradients)
            jax.tree.map(lambda a, b: close(a, b, 2e-5), again_gradients, gradients)


@pytest.mark.parametrize(
    "fields", [{}, {"mlp": "swiglu", "pool": "map", "num_registers": 3, "class_token": False}]
)
def test_flops_agree_with_xla(fields):
    model = ViT("B/16", depth=2, **fields)  # wide, so that matrix products dominate
    images = jax.ShapeDtypeStruct((1, 96, 128, 3), jnp.float32)
    for kept in (None, 12):
        keep = None if kept is None else jnp.arange(kept)[None]
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        forward = jax.jit(lambda v, x, keep=keep: model.apply(v, x, keep=keep).pooled)
        counted = forward.lower(variables, images).cost_analysis()["flops"]
        assert model.flops((96, 128), kept=kept) == pytest.approx(counted, rel=0.03)


# Parameters of the backbone with a class token at 224 pixels, without head; in millions.
PUBLISHED = {
    "Ti/16": 5.524,  # timm's vit_tiny_patch16_224 with num_classes=0
    "S/16": 21.7,
    "B/16": 85.8,
    "B/32": 87.5,
    "L/16": 303.3,
    "So400m/14": 412.4,  # SigLIP's without its pooling
    "H/14": 630.8,
    "g/14": 1011.2,
    "G/14": 1842.9,
    "22B/14": 21743.0,
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes(variant):
    fields = {"qk_norm": True, "parallel": True, "qkv_bias": False, "norm_bias": False}
    model = ViT(variant, **(fields if variant.startswith("22B") else {}), scan=True)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(PUBLISHED[variant], rel=2e-3)


def test_every_size_has_heads_that_fit():
    assert set(SIZES) == {
        *("Ti", "S", "M", "B", "L", "So400m", "H"),
        *("g", "g-opt", "G", "G-opt", "e", "22B"),
    }
    for name, size in SIZES.items():
        assert size.width % size.num_heads == 0
        assert ViT(f"{name}/14").patch == (14, 14)


def test_parameter_tree():
    fields = {"num_registers": 2, "pool": "map", "qk_norm": True, "layer_scale": 1e-5}
    model = ViT(**TINY, **fields)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    shapes = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    linear = {"kernel": (16, 16), "bias": (16,)}
    norm = {"scale": (16,), "bias": (16,)}
    mlp = {
        "fc1/kernel": (16, 32),
        "fc1/bias": (32,),
        "fc2/kernel": (32, 16),
        "fc2/bias": (16,),
    }
    attention = {
        f"attention/{name}/{leaf}": shape
        for name in ("query", "key", "value", "out")
        for leaf, shape in linear.items()
    }
    heads = {
        f"attention/{name}/{leaf}": (8,)
        for name in ("query_norm", "key_norm")
        for leaf in ("scale", "bias")
    }
    expected = {
        "patch_embedding/kernel": (48, 16),
        "patch_embedding/bias": (16,),
        "cls_token": (16,),
        "register_tokens": (2, 16),
        "positions": (2, 3, 16),
        "pooling/probe": (1, 16),
        **{f"norm/{leaf}": shape for leaf, shape in norm.items()},
        **{f"pooling/norm/{leaf}": shape for leaf, shape in norm.items()},
        **{f"pooling/mlp/{leaf}": shape for leaf, shape in mlp.items()},
        **{f"pooling/{leaf}": shape for leaf, shape in attention.items()},
    }
    for layer in range(3):
        block = {
            "layer_scale1": (16,),
            "layer_scale2": (16,),
            **attention,
            **heads,
            **{f"norm{n}/{leaf}": shape for n in (1, 2) for leaf, shape in norm.items()},
            **{f"mlp/{leaf}": shape for leaf, shape in mlp.items()},
        }
        expected |= {f"blocks_{layer}/{leaf}": shape for leaf, shape in block.items()}
    assert shapes == expected


def test_all_layers_by_one_call():
    model, variables = tiny()
    apply = jax.jit(model.apply, static_argnames="layers")
    out = apply(variables, IMAGES, layers="all")
    assert list(out.hidden) == [0, 1, 2]
    last = apply(variables, IMAGES, layers=(-1,))
    close(last.hidden[2], out.hidden[2])
    assert not jax.eval_shape(model.apply, variables, IMAGES).hidden
    with pytest.raises(ConfigError, match="no layer 3"):
        model.apply(variables, IMAGES, layers=(3,))


def test_token_drop_keeps_its_share_in_training_only():
    model, variables = tiny(token_drop=0.5)

    def tokens(train):
        rngs = {"dropout": jax.random.key(0)}
        run = functools.partial(model.apply, train=train, rngs=rngs)
        return jax.eval_shape(run, variables, IMAGES).tokens.shape[1]

    assert tokens(train=True) == 1 + 3
    assert tokens(train=False) == 1 + 6
    assert model.num_kept((8, 12)) == 3


def test_drop_path_drops_whole_branches_of_examples():
    model, variables = tiny(drop_path=0.9, depth=2)
    images = jnp.tile(IMAGES[:1], (64, 1, 1, 1))
    rngs = {"dropout": jax.random.key(0)}
    out = jax.jit(lambda v: model.apply(v, images, train=True, rngs=rngs, layers="all"))(variables)
    # The first block never drops; the last leaves most examples as they were.
    assert len(np.unique(np.asarray(out.hidden[0][:, 0, 0]).round(5))) == 1
    same = np.isclose(out.hidden[1], out.hidden[0], atol=1e-6).all((1, 2))
    assert 0.6 < same.mean() < 0.95
    # Expectation is kept: what is not dropped is scaled up tenfold.
    moved = np.abs(out.hidden[1] - out.hidden[0]).max((1, 2))
    evaluated = jax.jit(functools.partial(model.apply, layers="all"))(variables, images[:1]).hidden
    assert moved.max() > 5 * np.abs(evaluated[1] - evaluated[0]).max()


def test_parameters_decide_the_precision():
    """As in the training step: bfloat16 matrices, float32 norms, and images of either."""
    model, variables = tiny(pool="map", layer_scale=0.1, num_registers=1)
    half = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "norm" in str(path) else x.astype(jnp.bfloat16), variables
    )
    for images in (IMAGES, IMAGES.astype(jnp.bfloat16)):
        out = jax.jit(functools.partial(model.apply, layers="all"))(half, images)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves((out.tokens, out.pooled, out.hidden))}
        assert dtypes == {jnp.dtype(jnp.bfloat16)}
    exact = jax.jit(model.apply)(variables, IMAGES)
    close(out.pooled.astype(jnp.float32), exact.pooled, 0.1)


def test_another_image_size_needs_no_other_parameters():
    model, variables = tiny()
    out = jax.eval_shape(model.apply, variables, jnp.ones((1, 20, 16, 3)))
    assert out.tokens.shape == (1, 21, 16)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"variant": "Q/16"}, "unknown size 'Q'"),
        ({"variant": "B"}, "names no patch size"),
        ({"variant": "B/x"}, "names no patch size"),
        ({"patch_size": 5}, "not divisible by the patch size"),
        ({"patch_size": 0}, "patch_size: expected sides from 1"),
        ({"depth": -1}, "depth: expected 0 blocks or more, got -1"),
        ({"dropout": 1.5}, "dropout: expected a rate from 0 to 1, got 1.5"),
        ({"num_heads": 3}, "does not divide the width"),
        ({"class_token": False}, "'cls' needs class_token"),
        ({"remat": "dot"}, "Did you mean 'dots'"),
        ({"weight_init": "mea"}, "Did you mean 'mae'"),
        ({"positions": "rotary2d", "width": 12, "num_heads": 2}, "divisible by 4"),
        ({"positions": "sincos2d", "width": 18}, "divisible by 4"),
        ({"positions": "learnt"}, "Did you mean 'learned'|unknown value"),
        ({"token_drop": 0.99}, "leaves no patch"),
    ],
)
def test_errors(fields, message):
    sizes = {} if "variant" in fields else TINY
    images = IMAGES if sizes else jnp.zeros((1, 32, 32, 3))
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}

    def build():
        model = config.build(MODELS, {"name": "vit", **sizes, **fields}, "model")
        jax.eval_shape(functools.partial(model.init, train=True), rngs, images)

    with pytest.raises(ConfigError, match=message):
        build()
