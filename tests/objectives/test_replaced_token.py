"""ELECTRA: what the two networks share, what is replaced, and sums that add up."""

import functools

import chex
import jax
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.models.electra import ELECTRA
from encoders.objectives.corruption import Masking
from encoders.objectives.replaced_token import Generator, ReplacedToken
from encoders.parallel.mesh import make_mesh
from tests.objectives.pretraining import (
    ENCODER,
    LENGTH,
    ROWS,
    VOCABULARY,
    batch,
    parameters,
    train,
)

MASKING = Masking(0.3, mask=0.85, random=0.0)
OBJECTIVE = ReplacedToken(
    ENCODER, vocabulary=VOCABULARY, masking=MASKING, generator=Generator(0.5, parent=None)
)


def test_a_batch_is_the_sum_of_its_parts():
    """Draws, losses and gradients, on many devices and in micro-batches."""
    expected, gradients = train(OBJECTIVE, make_mesh(devices=jax.devices()[:1]))
    metrics, grads = train(OBJECTIVE, make_mesh(data=2, fsdp=2, tensor=2), micro_batches=2)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    chex.assert_trees_all_close(grads, gradients, atol=1e-4)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1
    # The discriminator's mean is over real tokens, whatever their number in a row.
    real = (batch()["segments"] > 0).sum()
    assert expected["loss"][1] == expected["replaced_loss"][1] == real


@functools.cache
def replaced():
    """What the generator was given and what became of it."""

    def run(module, batch):
        corrupted = module.corrupt(batch)
        guesses = module.guesses(batch, corrupted)
        return corrupted, guesses, *module.replace(batch, corrupted, guesses)

    return jax.jit(lambda params: OBJECTIVE.apply({"params": params}, batch(), method=run))(
        parameters(OBJECTIVE)
    )


def test_hidden_tokens_are_filled_and_right_guesses_are_originals():
    corrupted, _, ids, labels = jax.tree.map(np.asarray, replaced())
    original, segments = batch()["ids"], batch()["segments"]
    np.testing.assert_array_equal(labels, ids != original)
    hidden = np.zeros((ROWS, LENGTH), bool)
    row, column = np.nonzero(corrupted.weights)
    hidden[row, corrupted.places[row, column]] = True
    assert not labels[~hidden].any()
    assert not labels[segments == 0].any()
    assert 0 < labels.sum() <= hidden.sum()
    assert not (ids[hidden] == original[hidden]).all()


def test_a_certain_generator_replaces_nothing():
    corrupted, *_ = replaced()
    sure = 100 * jax.nn.one_hot(corrupted.labels, 31)
    params = {"params": parameters(OBJECTIVE)}
    fill = jax.jit(lambda *given: OBJECTIVE.apply(params, *given, method="replace"))
    ids, labels = fill(batch(), corrupted, sure)
    np.testing.assert_array_equal(ids, batch()["ids"])
    assert not labels.any()


@pytest.mark.parametrize("sharing", ["embeddings", "none"])
def test_which_loss_trains_what(sharing):
    module = OBJECTIVE.clone(sharing=sharing)

    def losses(params):
        metrics = module.apply({"params": params}, batch()).metrics
        return metrics["replaced_loss"][0], metrics["token_loss"][0]

    @jax.jit
    def both(params):
        pull = jax.vjp(losses, params)[1]
        return pull((1.0, 0.0))[0], pull((0.0, 1.0))[0]

    of_replaced, of_tokens = both(parameters(module))

    def trained(tree):
        return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree)) > 0

    # Nothing passes the drawing.
    assert not trained(of_replaced["generator"])
    assert not trained(of_tokens["encoder"]["blocks_0"])
    assert not trained(of_tokens["head"])
    assert trained(of_tokens["encoder"]["embeddings"]) == (sharing == "embeddings")
    assert ("embeddings" in of_tokens["generator"]["encoder"]) == (sharing == "none")
    assert trained(of_replaced["encoder"]["embeddings"])


@pytest.mark.parametrize(
    "variant, width, num_heads, share",
    [("small", 64, 1, 0.25), ("base", 256, 4, 1 / 3), ("large", 256, 4, 0.25)],
)
def test_generators_of_the_paper(variant, width, num_heads, share):
    encoder = ELECTRA(variant)
    size = Generator(share, parent=None).network(encoder).size
    assert (size.width, size.num_heads, size.mlp_dim) == (width, num_heads, 4 * width)
    assert (size.depth, size.embedding_dim) == (encoder.size.depth, encoder.size.embedding_dim)


def test_flops_count_both_networks():
    network = OBJECTIVE.generator.network(ENCODER)
    assert network.size.width == 6
    hidden = MASKING.places(LENGTH)
    generator = network.flops(LENGTH) + hidden * 2 * 8 * (6 + 31)
    head = LENGTH * 2 * 12 * 13
    assert OBJECTIVE.flops(LENGTH) == generator + ENCODER.flops(LENGTH) + head


def test_a_generator_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"objective.generator: 0.1 of 1 blocks"):
        Generator(depth=0.1, parent=None).network(ENCODER)
