"""What tests of formats of two towers share: the directories of tests/golden/pairs."""

import functools
import json
import pathlib

import jax
import numpy as np
import optax

import encoders
from encoders.checkpoints.formats import files
from tools.golden.inputs import picture

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "pairs"


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return {key: file[key] for key in file.files}


def gradients(name):
    """Those that are stored, by their names."""
    prefix = "gradients/"
    return {k.removeprefix(prefix): v for k, v in expected(name).items() if k.startswith(prefix)}


def pictures(name):
    """Images, or patches of images at their own aspect ratio, and what else the tower is given."""
    want = expected(name)
    images = picture(tuple(want["image_size"]), len(want["ids"]))
    if "shapes" not in want:
        return images, {}
    return images.reshape(*images.shape[:2], -1), {"shapes": want["shapes"]}


@functools.cache
def run(name):
    """Outputs of both towers, embeddings, logits, the published loss and its gradients."""
    pair, want = load(name), expected(name)
    module, weights = pair.module, pair.variables["params"]
    images, shapes = pictures(name)
    text = {"segments": want["segments"]}

    def loss(params):
        def apply(*arguments, **given):
            return module.apply({"params": params}, *arguments, **given)

        parts = {
            "image": apply(images, method=lambda m, x: m.image(x, **shapes, layers="all")),
            "text": apply(want["ids"], method=lambda m, x: m.text(x, **text, layers="all")),
        }
        embeddings = (
            apply(images, **shapes, method="embed_image"),
            apply(want["ids"], **text, method="embed_text"),
        )
        logits = apply(*embeddings, method="logits")
        return _loss(logits, module.logit_bias is not None), (parts, embeddings, logits)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, rest), gradient = compiled(weights)
    return value, *rest, jax.device_get(gradient)


def _loss(logits, sigmoid):
    size = len(logits)
    if sigmoid:
        return optax.sigmoid_binary_cross_entropy(logits, np.eye(size)).sum() / size
    both = [optax.softmax_cross_entropy(x, np.eye(size)).mean() for x in (logits, logits.T)]
    return sum(both) / 2


def check(name, atol):
    """Everything that is stored but the gradients."""
    want = expected(name)
    value, parts, embeddings, logits, _ = run(name)
    real = want["segments"] > 0
    for tower, out in parts.items():
        assert sorted(out.hidden) == list(range(len(want[f"{tower}_hidden"])))
        where = real if tower == "text" else np.asarray(out.mask)
        for layer, hidden in enumerate(want[f"{tower}_hidden"]):
            np.testing.assert_allclose(
                np.asarray(out.hidden[layer])[where], hidden[where], rtol=0, atol=atol
            )
        if f"{tower}_tokens" in want:
            tokens = want[f"{tower}_tokens"]
            np.testing.assert_allclose(
                np.asarray(out.tokens)[where], tokens[where], rtol=0, atol=atol
            )
    for tower, vectors in zip(("image", "text"), embeddings, strict=True):
        np.testing.assert_allclose(vectors, want[f"{tower}_embeddings"], rtol=0, atol=atol)
    np.testing.assert_allclose(logits, want["logits"], rtol=0, atol=atol)
    np.testing.assert_allclose(value, want["loss"], rtol=0, atol=atol)


def tokenized(name):
    return json.loads((GOLDEN / name / "tokenized.json").read_text())


def copied(name, directory, edit=lambda config: None, tensors=None, without=()):
    """A copy of a golden directory with its config and tensors changed."""
    directory.mkdir()
    source = GOLDEN / name
    for path in source.iterdir():
        if path.suffix == ".json":
            (directory / path.name).write_bytes(path.read_bytes())
    config_name = "config.json" if (source / "config.json").is_file() else "open_clip_config.json"
    config = files.read_json(directory / config_name)
    edit(config)
    files.write_json(directory / config_name, config)
    found = files.read_tensors(source)
    kept = {key: value for key, value in found.items() if key not in without}
    [weights] = [path.name for path in source.glob("*.safetensors")]
    files.write_tensors(directory / weights, {**kept, **(tensors or {})})
    return directory
