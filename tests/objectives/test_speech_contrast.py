"""wav2vec 2.0's objective: its formula, transformers' numbers, no leaks, exact sums."""

import functools
import pathlib

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from encoders.errors import ConfigError
from encoders.layers.quantizer import GumbelQuantizer
from encoders.objectives.span_masking import SpanMasking
from encoders.objectives.speech_contrast import Drawn, SpeechContrast, contrast
from encoders.parallel.mesh import make_mesh
from encoders.types import Encoded
from tests.objectives import speech
from tests.objectives.speech import ENCODER, ROWS, SPREAD

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "speech_losses.npz"
OBJECTIVE = SpeechContrast(
    ENCODER,
    masking=SpanMasking(rate=0.5, length=3),
    quantizer=GumbelQuantizer(groups=2, entries=5, width=6),
    projection_dim=4,
    num_negatives=5,
    feature_dropout=0.0,
)


def close(a, b, atol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=0, atol=atol)


# --- the formula ----------------------------------------------------------------------------------


def test_contrast_is_a_softmax_over_the_target_and_its_negatives():
    rng = np.random.default_rng(0)
    found, target = rng.normal(size=(2, 6, 4)).astype(np.float32)
    found, target = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, target))
    codes = np.array([[0, 1], [2, 2], [0, 1], [1, 0], [4, 4], [4, 4]], np.int32)
    # Drawn twice; of the same code as one's own; of nothing but that, as where all is one code.
    negatives = np.array([[1, 1, 3], [0, 2, 5], [0, 1, 4], [1, 2, 5], [5, 5, 5], [4, 0, 1]])
    losses, correct = jax.jit(contrast)(found, target, codes, negatives, 0.1)
    for i in range(6):
        scores = [found[i] @ target[i] / 0.1]
        scores += [found[i] @ target[j] / 0.1 for j in negatives[i] if (codes[i] != codes[j]).any()]
        expected = np.log(np.exp(scores).sum()) - scores[0]
        close(losses[i], np.float32(expected), 1e-4)
        assert correct[i] == (len(scores) > 1 and scores[0] > max(scores[1:]))
    assert losses[4] == 0


class Given(nn.Module):
    """Stands in for an encoder whose output is known."""

    tokens: jax.Array

    def __call__(self, waveform, *, mask, train, features, masked):
        return Encoded(self.tokens, features[1])


def test_matches_transformers():
    """Loss and gradients with given masks, negatives and noise."""
    arrays = dict(np.load(GOLDEN))
    theirs = {k.removeprefix("contrast/"): v for k, v in arrays.items() if k.startswith("contrast")}
    real = np.arange(14) < np.array([14, 9, 12])[:, None]
    batch = {"waveform": np.zeros((3, 20)), "length": np.full(3, 20)}
    masking = SpanMasking(rate=1.0, length=3)  # as many places as there are frames
    names = {
        "quantizer.codevectors": ("quantizer", "codebook"),
        "quantizer.weight_proj.weight": ("quantizer", "logits", "kernel"),
        "quantizer.weight_proj.bias": ("quantizer", "logits", "bias"),
        "project_hid.weight": ("project_hidden", "kernel"),
        "project_hid.bias": ("project_hidden", "bias"),
        "project_q.weight": ("project_target", "kernel"),
        "project_q.bias": ("project_target", "bias"),
    }

    def ours(kind):
        tree = {}
        for name, (*parents, leaf) in names.items():
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            value = theirs[f"{kind}/{name}"]
            node[leaf] = value.reshape(2, 5, 3) if leaf == "codebook" else value.T
        return tree

    def loss(params, features, tokens):
        class Fixed(SpeechContrast):
            def _temperature(self, batch):
                return theirs["temperature"]

        fields = {name: getattr(OBJECTIVE, name) for name in ("quantizer", "projection_dim")}
        module = Fixed(Given(tokens), masking=masking, feature_dropout=0.0, **fields)
        hidden = module.bind({}).hidden(theirs["mask"], batch)
        place = np.cumsum(theirs["mask"], axis=1) - 1  # of a hidden frame among those of its row
        negatives = jax.vmap(lambda p, n, f: p[n[f]])(place, theirs["negatives"], hidden.frames)
        noise = jax.vmap(lambda n, f: n[f])(theirs["noise"], hidden.frames)
        front = (features, real, None)
        drawn = Drawn(hidden, negatives, noise)
        embedded = module.apply(
            {"params": params}, batch, front, drawn, train=True, method="losses"
        )
        outcome = module.apply({"params": params}, embedded, batch, method="compare")
        return outcome.loss, outcome

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, outcome), gradients = grad(ours("params"), theirs["features"], theirs["tokens"])
    count = theirs["mask"].sum()
    assert outcome.weight == count
    close(value, theirs["loss"], 1e-4)
    close(outcome.metrics["contrastive_loss"][0], theirs["contrastive_loss"], 1e-4)
    close(outcome.metrics["diversity_loss"][0], theirs["diversity_loss"], 1e-4)
    close(outcome.metrics["perplexity"][0] / count, theirs["perplexity"], 1e-4)
    expected = (ours("gradients"), theirs["gradients/features"], theirs["gradients/tokens"])
    close(gradients, expected, 1e-4)
    assert np.abs(theirs["gradients/features"]).max() > 1  # targets have a gradient


# --- any number of devices and parts --------------------------------------------------------------

SHARDS = OBJECTIVE.clone(quantizer_stats="per_shard", shard_rows=4)


def test_global_statistics_on_any_mesh_in_any_parts():
    metrics, grads = speech.train(OBJECTIVE, *SPREAD)
    expected, theirs = speech.train(OBJECTIVE)
    close(grads, theirs)
    for name, value in expected.items():
        if isinstance(value, tuple):
            np.testing.assert_allclose(metrics[name], value, rtol=2e-6, err_msg=name)
    assert float(expected["temperature"][0]) == pytest.approx(2 * 0.999995**3)


@functools.cache
def embedded():
    params, _ = speech.variables(OBJECTIVE)
    rngs = {"corrupt": jax.random.key(5)}
    embed = functools.partial(OBJECTIVE.apply, method="embed", train=True)
    return jax.jit(embed)({"params": params}, speech.batch(), rngs=rngs)


def test_perplexity_is_of_the_batch_or_of_each_shard():
    """Wherever its rows are: on eight devices here, of which none has a whole shard."""
    parts = jax.device_get(embedded())
    every = {"params": {}}
    mesh = make_mesh(data=8)
    spread = jax.device_put(parts, NamedSharding(mesh, PartitionSpec("data")))
    for module, size in ((OBJECTIVE, ROWS), (SHARDS, 4)):
        compare = functools.partial(module.apply, every, batch=speech.batch(), method="compare")
        outcome = jax.jit(compare)(spread)
        diversity = 0.0
        for start in range(0, ROWS, size):
            rows = slice(start, start + size)
            count = parts["count"][rows].sum()
            shares = parts["shares"][rows].sum(0) / count
            ppl = np.exp(-(shares * np.log(shares)).sum(-1)).sum()
            diversity += count * (10 - ppl) / 10
        close(outcome.metrics["diversity_loss"][0], np.float32(diversity), 1e-3)
        # Every part of the loss has the scale of a sum over the N hidden frames.
        expected = parts["contrast"].sum() + 0.1 * diversity + 10 * parts["penalty"].sum()
        close(outcome.loss, np.float32(expected), 1e-2)
        assert outcome.weight == parts["count"].sum()
    with pytest.raises(ConfigError, match="16 rows cannot be cut into shards of 3"):
        SHARDS.clone(shard_rows=3).apply(every, parts, speech.batch(), method="compare")


def test_padding_counts_in_nothing():
    parts = embedded()
    assert all(float(np.abs(x[ROWS - 3]).sum()) == 0 for x in jax.tree.leaves(parts))
    assert (np.delete(parts["count"], ROWS - 3) > 0).all()


def test_the_front_ends_gradient_is_scaled_once_for_all_parts():
    """A public script multiplies it again with every part it adds."""
    plain = OBJECTIVE.clone(encoder=ENCODER.clone(feature_gradient=1.0))
    _, scaled = speech.train(OBJECTIVE, *SPREAD)
    _, whole = speech.train(plain)
    for name in ("convolutions", "projection"):
        factor = 0.1 if name == "convolutions" else 1.0
        expected = jax.tree.map(lambda x, f=factor: f * x, whole["encoder"][name])
        close(scaled["encoder"][name], expected)


# --- what is random, and what is seen -------------------------------------------------------------


def test_draws_are_of_hidden_real_frames_and_of_the_corrupt_stream_alone():
    """Padded frames as negatives: transformers#12764; one key for dropout and noise: #19588."""
    real = np.arange(20) < np.arange(5, 5 + ROWS)[:, None]
    bound = functools.partial(OBJECTIVE.apply, {"params": {}}, speech.batch(), real, train=True)

    def draw(corrupt, dropout):
        rngs = {"corrupt": jax.random.key(corrupt), "dropout": jax.random.key(dropout)}
        return bound(rngs=rngs, method="draw")

    draw = jax.jit(draw)
    first, same, other = draw(0, 0), draw(0, 1), draw(1, 0)
    chex.assert_trees_all_equal(first, same)
    assert not np.array_equal(first.noise, other.noise)
    hidden = np.asarray(first.hidden.mask)
    assert (hidden <= real).all()
    used = np.asarray(first.hidden.weights) > 0
    of_frames = np.take_along_axis(
        np.asarray(first.hidden.frames)[..., None], np.asarray(first.negatives), axis=1
    )
    assert np.take_along_axis(hidden[..., None], of_frames, axis=1)[used].all()
    assert (of_frames != np.asarray(first.hidden.frames)[..., None])[used].all()
    # No two rows, and no two frames, have the same noise.
    assert len(np.unique(np.asarray(first.noise)[..., 0, 0])) == used.size


def test_hidden_frames_do_not_reach_the_encoders_output():
    params, _ = speech.variables(OBJECTIVE)
    mask = np.zeros((ROWS, speech.FRAMES), bool)
    mask[:, 2:5] = True

    def encode(x):
        objective = OBJECTIVE.bind({"params": params})
        _, real, _ = objective.features(speech.batch())
        return objective.encode(speech.batch(), features=(x, real), masked=mask).tokens

    encode = jax.jit(encode)
    x = np.random.default_rng(0).normal(size=(ROWS, speech.FRAMES, 8)).astype(np.float32)
    changed = np.where(mask[..., None], 1e4, x)
    np.testing.assert_array_equal(encode(x), encode(changed))
    moved = np.where(mask[..., None], x, x + 1)
    assert np.abs(encode(x) - encode(moved))[:, 2:5].max((1, 2)).min() > 1e-4


def test_fields_that_do_not_fit():
    wrong = OBJECTIVE.clone(shard_rows=4)
    with pytest.raises(ConfigError, match="belongs to quantizer_stats='per_shard'; got 4"):
        jax.eval_shape(wrong.init, jax.random.key(0), speech.batch())
