"""XLNets that transformers wrote: both streams, scores, loss, gradients and names, both ways.

Written by `python -m tools.golden.write_xlnet`; read here without PyTorch.
"""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders import config
from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError, ConfigError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from encoders.objectives.permutation import Permuted

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "xlnet"
NAMES = ("plain", "tied", "untied")
ATOL = 5e-6


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return dict(file)


def inputs(name):
    """As our models take them."""
    given = expected(name)
    found = {"mask": given["inputs/attention_mask"] == 1}
    if "inputs/token_type_ids" in given:
        found["token_types"] = given["inputs/token_type_ids"].astype(np.int32)
    return given["inputs/input_ids"].astype(np.int32), found


def close(a, b, atol=ATOL):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@functools.cache
def plain():
    """Output of the encoder, and gradients of the stored linear function of it."""
    encoder, (ids, rest) = load("plain"), inputs("plain")

    def loss(params):
        out = encoder.module.apply({"params": params}, ids, **rest, layers="all")
        return (out.tokens * expected("plain")["cotangent"]).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        encoder.variables["params"]
    )
    return out, {"encoder": gradients}


@functools.cache
def predicting(name):
    """The mean loss of the stored order and its gradients, and what they were computed from."""
    encoder, (ids, rest), given = load(name), inputs(name), expected(name)
    objective = config.build(OBJECTIVES, encoder.objective, "objective", encoder=encoder.module)
    drawn = Permuted(given["inputs/targets"], given["inputs/weights"], given["inputs/visible"])
    # An objective says what is real by segments, of which there is one in each row here.
    batch = {"ids": ids, "segments": rest["mask"].astype(np.int32)}
    if "token_types" in rest:
        batch["token_types"] = rest["token_types"]

    def loss(params):
        outcome = objective.apply({"params": params}, batch, drawn, method="loss")
        return outcome.loss / outcome.weight

    params = {"encoder": encoder.variables["params"], **encoder.heads}
    return *jax.jit(jax.value_and_grad(loss))(params), objective, params, batch, drawn


def test_outputs_and_every_layer():
    (out, _), want = plain(), expected("plain")
    close(out.tokens, want["outputs/tokens"])
    assert sorted(out.hidden) == [0, 1]
    for layer, hidden in enumerate(want["outputs/hidden"]):
        close(out.hidden[layer], hidden)
    mask = inputs("plain")[1]["mask"]
    np.testing.assert_array_equal(out.mask, mask)
    # summary_type is 'first' in this file: the first token that is real.
    close(out.pooled[1], want["outputs/tokens"][1, 2])
    assert not mask[3].any()
    assert not out.pooled[3].any()


def test_rows_that_run_backwards_and_memory():
    encoder, (ids, rest), want = load("plain"), inputs("plain"), expected("plain")
    module, variables = encoder.module, encoder.variables

    @jax.jit
    def both(variables):
        backward = np.array([False, False, True, True])
        turned = module.apply(variables, ids, **rest, backward=backward)
        first = module.apply(variables, ids, **rest, layers="all")
        memory = module.apply(variables, ids, first, None, 4, method="remember")
        second = module.apply(variables, ids, **rest, memory=memory)
        return turned.tokens, second.tokens, memory

    turned, second, memory = both(variables)
    close(turned, want["outputs/half_backward"])
    close(second, want["outputs/after_memory"])
    assert memory.shape == (2, 4, 4, 12)
    longer = module.apply(
        variables,
        ids,
        encoders.types.Encoded(second, second, None, {0: second}),
        memory,
        method="remember",
    )
    np.testing.assert_array_equal(longer[:, :, :4], memory)
    assert longer.shape == (2, 4, 11, 12)
    with pytest.raises(ConfigError, match="packed into have no memory"):
        module.apply(variables, ids, segments=ids, memory=memory)


def test_scores_and_loss():
    loss, _, objective, params, batch, drawn = predicting("untied")
    close(loss, expected("untied")["outputs/loss"])
    scores = jax.jit(functools.partial(objective.apply, method="scores"))
    found, seeing = scores({"params": params}, batch, drawn), drawn.weights > 0
    close(found[seeing], expected("untied")["outputs/scores"][seeing])


def test_both_streams_at_every_layer():
    loss, _, objective, params, _, drawn = predicting("tied")
    want, seeing = expected("tied"), drawn.weights > 0
    close(loss, want["outputs/loss"])
    run = functools.partial(objective.encoder.apply, method="two_streams", layers="all")
    ids, rest = inputs("tied")
    given = (ids, drawn.places, drawn.visible)
    content, query = jax.jit(run)({"params": params["encoder"]}, *given, **rest)
    assert seeing.sum() >= 4
    for layer in (0, 1):
        # The content of padding too, where every token sees itself.
        close(content.hidden[layer], want["outputs/hidden"][layer])
        close(query.hidden[layer][seeing], want["outputs/query"][layer][seeing])


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    gradients = dict(plain()[1] if name == "plain" else predicting(name)[1])
    # Written as if they were weights: under the names of transformers.
    carrier = dataclasses.replace(
        load(name), variables={"params": gradients.pop("encoder")}, heads=gradients
    )
    encoders.save(carrier, tmp_path / "out", format="hf", heads=bool(gradients))
    ours = files.read_tensors(tmp_path / "out")
    prefix = "gradients/"
    theirs = {k.removeprefix(prefix): v for k, v in expected(name).items() if k.startswith(prefix)}
    # What no output depends on has no gradient there, and zero here.
    for key in set(ours) - set(theirs):
        assert key.endswith(("mask_emb", "r_s_bias", "seg_embed"))
        assert not ours.pop(key).any()
    assert set(ours) == set(theirs)
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder = load(name)
    encoders.save(encoder, tmp_path / "out", format="hf", heads=bool(encoder.heads))
    before = files.read_tensors(GOLDEN / name)
    for key in encoder.metadata["dropped"]:
        del before[key]
    chex.assert_trees_all_equal(files.read_tensors(tmp_path / "out"), before)
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    given = json.loads((GOLDEN / name / "config.json").read_text())
    own = {"encoders", "ff_activation"}
    assert {k: given[k] for k in after if k not in own} == {
        k: v for k, v in after.items() if k not in own
    }
    again = encoders.load(tmp_path / "out")
    assert again.module == encoder.module
    assert again.objective == encoder.objective
    chex.assert_trees_all_equal(again.variables, encoder.variables)
    chex.assert_trees_all_equal(again.heads, encoder.heads)


def test_the_head_comes_along():
    assert load("plain").objective is None
    assert load("tied").objective == {"name": "permutation"}
    assert set(load("tied").heads["head"]) == {"bias"}
    assert set(load("untied").heads["head"]) == {"bias", "words"}
    assert load("tied").module.clamp_length == 3
    assert load("plain").module.pool == "cls"


@pytest.mark.parametrize("variant", ["base", "large"])
def test_published_sizes_have_the_parameters_of_transformers(variant):
    model = config.build(MODELS, {"name": "xlnet", "variant": variant, "scan": True}, "model")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
    counted = json.loads((GOLDEN / "parameters.json").read_text())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == counted[variant]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attn_type": "uni"}, "attn_type='uni' is not supported, only 'bi'"),
        ({"bi_data": True}, "bi_data=True is not supported, only False"),
        ({"ff_activation": "gelo"}, "ff_activation 'gelo' is not supported. Did you mean 'gelu'"),
        ({"n_head": 0}, "n_head=0 in config.json makes no sense"),
        ({"n_layer": 1}, "unknown: layer.1.ff"),
    ],
)
def test_what_is_not_supported_is_refused(fields, message, tmp_path):
    given = json.loads((GOLDEN / "plain" / "config.json").read_text())
    files.write_json(tmp_path / "config.json", {**given, **fields})
    files.write_tensors(tmp_path / "model.safetensors", files.read_tensors(GOLDEN / "plain"))
    with pytest.raises(CheckpointError, match=message):
        encoders.load(tmp_path)


def test_a_head_that_it_has_not_is_refused(tmp_path):
    objective = {"name": "masked_language"}
    wrong = dataclasses.replace(load("tied"), objective=objective)
    with pytest.raises(CheckpointError, match="heads that it has are those of permutation"):
        encoders.save(wrong, tmp_path / "out", format="hf", heads=True)
