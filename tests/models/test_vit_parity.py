"""The ViT against timm and transformers: outputs, hidden states and gradients on the same weights.

The numbers come from `python -m tools.golden.write_vision`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from encoders import config
from encoders.models import MODELS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = (
    "timm_cls",
    "timm_mean",
    "timm_map",
    "timm_dinov2",
    "timm_parallel",
    "timm_rotary",
    "timm_rotary_xy",
    "hf_vit",
)


def section(arrays, prefix):
    """The nested dict of the arrays whose names start with prefix/."""
    return unflatten_dict(
        {name: value for name, value in arrays.items() if name.startswith(f"{prefix}/")}, sep="/"
    )[prefix]


def with_zero_key_biases(params, template):
    """EVA has no bias on keys, which the softmax makes no difference to; ours is there and zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _get(params, path, jnp.zeros(leaf.shape)), template
    )


def _get(tree, path, default):
    for key in path:
        if key.key not in tree:
            assert [k.key for k in path[-2:]] == ["key", "bias"], path
            return default
        tree = tree[key.key]
    return tree


@pytest.mark.parametrize("name", CASES)
def test_matches_pytorch(name):
    arrays = dict(np.load(GOLDEN / f"vision_{name}.npz"))
    fields = {"name": "vit", **json.loads(str(arrays["fields"]))}
    model = config.build(MODELS, fields, "model")
    images, params = arrays["images"], section(arrays, "params")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    params = with_zero_key_biases(params, variables["params"])

    def loss(params):
        out = model.apply({"params": params}, images, layers="all")
        cotangents = section(arrays, "cotangents")
        value = (out.tokens * cotangents["tokens"]).sum()
        if "pooled" in cotangents:
            value += (out.pooled * cotangents["pooled"]).sum()
        return value, out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = section(arrays, "outputs")
    np.testing.assert_allclose(out.tokens, expected["tokens"], rtol=0, atol=2e-5)
    if "pooled" in expected:
        np.testing.assert_allclose(out.pooled, expected["pooled"], rtol=0, atol=2e-5)
    assert set(out.hidden) == {int(layer) for layer in expected["hidden"]}
    for layer, hidden in expected["hidden"].items():
        np.testing.assert_allclose(out.hidden[int(layer)], hidden, rtol=0, atol=5e-5)

    # Every parameter of theirs has a gradient here, and the same one.
    flat = {
        "/".join(k.key for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]
    }
    theirs = {k.removeprefix("gradients/"): v for k, v in arrays.items() if "gradients/" in k}
    missing = set(flat) - set(theirs)
    assert all(path.endswith("key/bias") for path in missing), missing
    assert not set(theirs) - set(flat)
    for path, gradient in theirs.items():
        np.testing.assert_allclose(flat[path], gradient, rtol=0, atol=1e-4, err_msg=path)
