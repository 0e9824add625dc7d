"""Two towers: what causes what in the text, what is built from a config, locking, and errors."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.config import build
from encoders.errors import ConfigError
from encoders.layers.stack import stack_layers
from encoders.loading import section_of
from encoders.models import MODELS
from encoders.models.clip_text import CLIPText

SIZE = {"width": 16, "depth": 2, "mlp_dim": 20, "num_heads": 2}
TEXT = {"name": "clip_text", **SIZE, "vocab_size": 30, "max_length": 8}
IMAGE = {"name": "vit", **SIZE, "width": 24, "patch_size": 4, "pre_norm": True, "patch_bias": False}
MODEL = {
    "name": "towers",
    "image": IMAGE,
    "text": TEXT,
    "embedding_dim": 12,
    "image_projection": "linear",
    "text_projection": "linear_bias",
}
IDS = np.random.default_rng(0).integers(1, 30, (3, 6)).astype(np.int32)
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
SEGMENTS = (np.arange(6) < np.array([[6], [4], [1]])).astype(np.int32)


def towers(**fields):
    return build(MODELS, MODEL | fields, "model")


@functools.cache
def variables():
    return jax.jit(towers().init)(jax.random.key(0), IMAGES, IDS, segments=SEGMENTS)


def close(a, b, atol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=0, atol=atol)


# --- the text tower -------------------------------------------------------------------------------


@functools.cache
def text_variables():
    return jax.jit(CLIPText(**{k: v for k, v in TEXT.items() if k != "name"}).init)(
        jax.random.key(1), IDS
    )


def encode(ids, segments=None, **fields):
    module = build(MODELS, TEXT | fields, "model")
    params = text_variables()
    if fields.get("scan"):
        params = stack_layers(params)
    return jax.jit(module.apply)(params, ids, segments=segments)


def test_tokens_see_those_before_them_only():
    other = IDS.copy()
    other[:, 4:] = 7
    before, after = encode(IDS).tokens, encode(other).tokens
    close(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3
    both_ways = encode(IDS, causal=False).tokens, encode(other, causal=False).tokens
    assert np.abs(both_ways[0][:, :4] - both_ways[1][:, :4]).max() > 1e-3


def test_the_last_real_token_stands_for_the_text():
    out = encode(IDS, SEGMENTS)
    close(out.pooled, out.tokens[np.arange(3), [5, 3, 0]])
    alone = encode(IDS[1:2, :4])
    close(out.pooled[1], alone.pooled[0])
    # Padding that is read as well: the last token is the row's.
    everything = encode(IDS, np.ones_like(SEGMENTS), causal=False)
    close(everything.pooled, everything.tokens[:, -1])


def test_packed_texts_are_those_that_stand_alone():
    packed = encode(IDS[:1], np.array([[1, 1, 2, 2, 2, 0]], np.int32)).tokens[0]
    close(packed[:2], encode(IDS[:1, :2]).tokens[0])
    close(packed[2:5], encode(IDS[:1, 2:5]).tokens[0])


def test_a_scanned_text_tower_is_the_same():
    close(encode(IDS, SEGMENTS).pooled, encode(IDS, SEGMENTS, scan=True).pooled)


# --- two towers -----------------------------------------------------------------------------------


def test_a_section_of_sections_and_back():
    module = towers(locked=("image",), logit_bias=-10.0)
    section = section_of(MODELS, module)
    assert section["text"]["name"] == "clip_text"
    assert build(MODELS, section, "model") == module
    assert set(variables()["params"]) == {
        "image",
        "text",
        "image_projection",
        "text_projection",
        "logit_scale",
    }
    assert "bias" not in variables()["params"]["image_projection"]
    assert "bias" not in variables()["params"]["image"]["patch_embedding"]


def test_logits_are_scaled_cosines():
    module = towers()
    image, text = jax.jit(module.apply)(variables(), IMAGES, IDS, segments=SEGMENTS)
    close(np.linalg.norm(image, axis=1), np.ones(3))
    close(np.linalg.norm(text, axis=1), np.ones(3))
    assert image.dtype == text.dtype == jnp.float32
    logits = jax.jit(functools.partial(module.apply, method="logits"))
    found = logits(variables(), image, text[:2])
    close(found, image @ text[:2].T / 0.07, 1e-4)
    mask = SEGMENTS > 0
    embed_text = jax.jit(functools.partial(module.apply, method="embed_text"))
    close(embed_text(variables(), IDS, mask=mask), text)
    biased = towers(logit_bias=-10.0)
    params = variables()["params"] | {"logit_bias": jnp.float32(-10)}
    logits = jax.jit(functools.partial(biased.apply, method="logits"))
    close(logits({"params": params}, image, text[:2]), found - 10, 1e-4)


def test_a_locked_tower_gets_no_gradient_and_no_dropout():
    module = towers(locked=("image",), image=IMAGE | {"dropout": 0.5, "token_drop": 0.5})

    def total(params, key):
        rngs = {"dropout": key}
        image, text = module.apply({"params": params}, IMAGES, IDS, train=True, rngs=rngs)
        return (image * text).sum()

    values = jax.jit(jax.value_and_grad(total))
    value, gradient = values(variables()["params"], jax.random.key(0))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["image"]))
    for name in ("text", "image_projection", "text_projection"):
        assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient[name])), name
    close(value, values(variables()["params"], jax.random.key(1))[0])


def test_a_tower_that_drops_tokens():
    """FLIP (arXiv 2212.00794): half of the patches, in training only."""
    module = towers(image=IMAGE | {"token_drop": 0.5})

    def images(train, key):
        return module.apply(
            variables(), IMAGES, train=train, method="embed_image", rngs={"dropout": key}
        )

    images = jax.jit(images, static_argnums=0)
    one, other = jax.random.key(0), jax.random.key(1)
    assert np.abs(images(True, one) - images(True, other)).max() > 1e-3
    close(images(False, one), images(False, other))
    whole = towers().flops(((8, 8), 6), train=True)
    assert module.flops(((8, 8), 6), train=True) < whole == module.flops(((8, 8), 6))


def test_flops_are_those_of_the_parts():
    module = towers()
    projections = 2 * 24 * 12 + 2 * 16 * 12
    parts = module.image.flops((8, 8)) + module.text.flops(6)
    assert module.flops(((8, 8), 6)) == parts + projections
    locked = towers(locked=("image",)).flops(((8, 8), 6), train=True)
    assert locked == pytest.approx(parts + projections - module.image.flops((8, 8)) * 2 / 3)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"image": IMAGE | {"name": "vitt"}}, "Did you mean 'vit'"),
        ({"image": IMAGE | {"depht": 2}}, "model.image.depht: unknown field. Did you mean 'depth'"),
        ({"text": 3}, "model.text: expected Module"),
        ({"image_projection": "none"}, "give vectors of 24 for image and 12 for text"),
        ({"embedding_dim": None}, "'linear' needs model.embedding_dim"),
        ({"image_projection": "linaer"}, "Did you mean 'linear'"),
        ({"locked": ("imge",)}, "unknown tower 'imge'. Did you mean 'image'"),
        ({"logit_scale": 90.0}, "more than 88.72"),
        ({"logit_scale": 5.0, "max_logit_scale": math.log(100)}, "more than 4.605"),
        ({"image": IMAGE | {"pool": "none"}}, "model.image.pool"),
    ],
)
def test_parts_that_do_not_fit(fields, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.").replace("?", r"\?")):
        jax.eval_shape(towers(**fields).init, jax.random.key(0), IMAGES, IDS)


def test_a_text_that_is_too_long():
    with pytest.raises(ConfigError, match=r"model\.max_length: 9 tokens are more than the 8"):
        jax.eval_shape(
            functools.partial(towers().apply, method="embed_text"),
            variables(),
            np.ones((1, 9), np.int32),
        )
