"""Losses over all pairs of a batch, without all pairs on any device.

Each device keeps its images and sees every text: the texts go around a ring of the devices, with
the sums that belong to them, and are home again after as many hops as there are devices. What a
device holds at any time is its own rows, one visitor's, and one block of logits; nothing grows with
the number of devices. Chen et al. (arXiv 2303.15343, section 3.3) do so for the sigmoid loss, whose
terms stand alone. The softmax takes two rounds, one for the sums of its rows and columns, one for
the gradient.

The gradient of either loss is computed with its value, and kept in place of what led to it:
d loss / d logit is known in closed form, so no logits are computed again for the backward pass.

Both losses are sums over the examples of the batch. With z = scale * cosine + bias,

  softmax   -sum_i (log softmax_j z_ij + log softmax_j z_ji at j = i) / 2   (2103.00020, figure 3)
  sigmoid   -sum_ij log sigmoid(+-z_ij), plus where i = j                   (2303.15343, equation 1)

A softmax that is smoothed by e has (1 - e) z_ii + e mean_j z_ij in place of z_ii (1512.00567,
section 7), as ALIGN has. In both losses a pair counts where both sides are real, and, where
`caption` is given, where it is not another example with the same caption.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from encoders.parallel.mesh import BATCH_AXES, batch_shards

Kind = Literal["softmax", "sigmoid"]
_BLOCK = 2**24  # logits of one block, in float32 64 MiB
_LEAST = -1e30  # in place of minus infinity, of which differences are no numbers


class Contrast(NamedTuple):
    """What is known of a batch of pairs, float32 scalars.

    Attributes:
      loss: the sum of the examples' losses.
      image_to_text: images whose own text fits better than all others that count.
      text_to_image: texts whose own image does.
    """

    loss: jax.Array
    image_to_text: jax.Array
    text_to_image: jax.Array


def contrast(
    kind: Kind,
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    valid: jax.Array,
    caption: jax.Array | None = None,
    mesh: Mesh | None = None,
    smoothing: float = 0.0,
) -> Contrast:
    """The loss of a batch of pairs, as the module says.

    Args:
      kind: which loss.
      image, text: [B, E] float32 of length 1; a pair has the same row in both.
      scale, bias: float32 scalars. The softmax does not depend on the bias.
      valid: [B], 0 for rows that are padding.
      caption: [B, K] integers, equal for equal captions (`fingerprints`); or None, where each is
        taken for one of its own.
      mesh: devices that the rows are spread over, in equal parts; None computes the formula as it
        stands, [B, B], and can be differentiated any number of times.
      smoothing: of the softmax; the sigmoid has none.
    """
    facts = {"row": jnp.arange(len(image), dtype=jnp.int32), "valid": valid > 0}
    if caption is not None:
        facts["caption"] = caption
    if mesh is None:
        return _dense(kind, smoothing, image, text, scale, bias, facts)
    local = _local_sigmoid
    if kind == "softmax":
        local = functools.partial(_local_softmax, smoothing)
    return Contrast(
        *_sharded(functools.partial(_run, local, mesh), image, text, scale, bias, facts)
    )


def fingerprints(ids: jax.Array) -> jax.Array:
    """uint32 [B, 2] for ids [B, T], equal for equal rows; for others once in 2^64 pairs."""
    place = jnp.arange(1, ids.shape[1] + 1, dtype=jnp.uint32)

    def mixed(seed: int) -> jax.Array:
        # Murmur's finaliser on every id with its place, summed.
        x = (ids.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B9)) * jnp.uint32(seed)
        for factor in (0x85EBCA6B, 0xC2B2AE35):
            x = (x ^ (x >> 15)) * jnp.uint32(factor)
        return (x ^ (x >> 16)).sum(1, dtype=jnp.uint32)

    return jnp.stack([mixed(0x27D4EB2F), mixed(0x165667B1)], axis=1)


def _cosines(image: jax.Array, text: jax.Array) -> jax.Array:
    # Products of float32 as such: on accelerators the default would round cosines to bfloat16.
    return jnp.einsum("ie,je->ij", image, text, precision="highest")


def _relations(own: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """[I, J] bool: which pairs are of one example, and which count."""
    same = own["row"][:, None] == other["row"]
    counts = own["valid"][:, None] & other["valid"]
    if "caption" in own:
        equal = (own["caption"][:, None] == other["caption"]).all(-1)
        counts = counts & (same | ~equal)
    return same & counts, counts


def _dense(
    kind: Kind,
    smoothing: float,
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    facts: Any,
) -> Contrast:
    same, counts = _relations(facts, facts)
    logits = scale * _cosines(image, text) + bias
    own = jnp.diagonal(logits)
    valid = facts["valid"]
    if kind == "sigmoid":
        terms = -jax.nn.log_sigmoid(jnp.where(same, logits, -logits))
        loss = jnp.where(counts, terms, 0).sum()
    else:
        masked = jnp.where(counts, logits, _LEAST)
        rows, columns = (jax.nn.logsumexp(masked, axis=axis) for axis in (1, 0))
        wanted = own
        if smoothing:
            means = [
                jnp.where(counts, logits, 0).sum(axis) / jnp.maximum(counts.sum(axis), 1)
                for axis in (1, 0)
            ]
            wanted = (1 - smoothing) * own + smoothing * sum(means) / 2
        loss = jnp.where(valid, (rows + columns) / 2 - wanted, 0).sum()
    rivals = jnp.where(counts & ~same, logits, _LEAST)
    right = [(valid & (own >= rivals.max(axis))).sum(dtype=jnp.float32) for axis in (1, 0)]
    return Contrast(loss, *right)


# --- one loss for all devices, and its gradient with it -------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sharded(run: Callable, *arguments: Any) -> tuple[jax.Array, ...]:
    return run(False, *arguments)[0]


def _sharded_forward(run: Callable, *arguments: Any) -> tuple[Any, Any]:
    return run(True, *arguments)


def _sharded_backward(run: Callable, gradients: Any, cotangents: Any) -> tuple[Any, ...]:
    del run
    return (*(cotangents[0] * gradient for gradient in gradients), None)


_sharded.defvjp(_sharded_forward, _sharded_backward)


def _run(local: Callable, mesh: Mesh, gradients: bool, *arguments: Any) -> tuple[Any, Any]:
    """(values of `Contrast`, gradients by image, text, scale and bias or None), on all devices."""
    rows, whole = P(BATCH_AXES), P()
    spread = jax.shard_map(
        functools.partial(local, batch_shards(mesh), gradients),
        mesh=mesh,
        in_specs=(rows, rows, whole, whole, rows),
        out_specs=((whole,) * 3, (rows, rows, whole, whole) if gradients else None),
        check_vma=False,
    )
    return spread(*arguments)


def _around(size: int, body: Callable, state: Any, visitors: Any) -> tuple[Any, Any]:
    """Shows this device's state all visitors, block by block, and all blocks its state.

    Args:
      size: devices in the ring.
      body: (state, block) -> (state, block), a block having some rows of the visitors.
      state: what stays on this device.
      visitors: arrays of equally many rows, which come from this device and go home to it.
    """
    rows = len(jax.tree.leaves(visitors)[0])
    block = max(d for d in range(1, rows + 1) if rows % d == 0 and (d == 1 or d * rows <= _BLOCK))

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        state, blocks = jax.lax.scan(body, *carry)
        if size > 1:
            forward = [(i, (i + 1) % size) for i in range(size)]
            blocks = jax.tree.map(lambda x: jax.lax.ppermute(x, BATCH_AXES, forward), blocks)
        return (state, blocks), None

    cut = jax.tree.map(lambda x: x.reshape(-1, block, *x.shape[1:]), visitors)
    (state, blocks), _ = jax.lax.scan(hop, (state, cut), length=size)
    return state, jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), blocks)


def _local_sigmoid(
    size: int,
    gradients: bool,
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    facts: Mapping[str, jax.Array],
) -> tuple[Any, Any]:
    zeros = jnp.zeros(len(image))

    def body(state: dict, visitors: dict) -> tuple[dict, dict]:
        state, visitors = dict(state), dict(visitors)
        cosines = _cosines(image, visitors["text"])
        logits = scale * cosines + bias
        same, counts = _relations(facts, visitors["facts"])
        terms = -jax.nn.log_sigmoid(jnp.where(same, logits, -logits))
        state["loss"] += jnp.where(counts, terms, 0).sum()
        _note_rivals(state, visitors, logits, same, counts)
        if gradients:
            slopes = jnp.where(counts, jax.nn.sigmoid(logits) - same, 0)
            _note_slopes(state, visitors, image, scale, cosines, slopes)
        return state, visitors

    state = {"loss": jnp.float32(0), "rival": zeros + _LEAST, "own": zeros}
    visitors = {"text": text, "facts": facts, "rival": zeros + _LEAST}
    if gradients:
        _expect_slopes(state, visitors, image, text)
    state, visitors = _around(size, body, state, visitors)
    return _summary(state["loss"], state, visitors, facts, gradients)


def _local_softmax(
    smoothing: float,
    size: int,
    gradients: bool,
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    facts: Mapping[str, jax.Array],
) -> tuple[Any, Any]:
    del bias  # adds the same to everything that is compared
    zeros = jnp.zeros(len(image))

    def scores(visitors: dict) -> tuple[jax.Array, ...]:
        cosines = _cosines(image, visitors["text"])
        same, counts = _relations(facts, visitors["facts"])
        return cosines, jnp.where(counts, scale * cosines, _LEAST), same, counts

    def add(side: dict, logits: jax.Array, axis: int) -> None:
        """More exponentials to the sum of them, which is kept over that of the best logit."""
        best = jnp.maximum(side["best"], logits.max(axis))
        more = jnp.exp(logits - jnp.expand_dims(best, axis)).sum(axis)
        side["sum"] = side["sum"] * jnp.exp(side["best"] - best) + more
        side["best"] = best

    def first(state: dict, visitors: dict) -> tuple[dict, dict]:
        state, visitors = dict(state), dict(visitors)
        _, logits, same, counts = scores(visitors)
        _note_rivals(state, visitors, logits, same, counts)
        for side, axis in ((state, 1), (visitors, 0)):
            add(side, logits, axis)
            if smoothing:
                side["total"] += jnp.where(counts, logits, 0).sum(axis)
                side["count"] += counts.sum(axis)
        return state, visitors

    sums = {"rival": zeros + _LEAST, "best": zeros + _LEAST, "sum": zeros}
    if smoothing:
        sums |= {"total": zeros, "count": zeros}
    state, visitors = {"own": zeros, **sums}, {"text": text, "facts": facts, **sums}
    state, visitors = _around(size, first, state, visitors)
    rows, columns = (s["best"] + jnp.log(jnp.maximum(s["sum"], 1e-30)) for s in (state, visitors))
    wanted = state["own"]
    if smoothing:
        of_rows, of_columns = (1 / jnp.maximum(s["count"], 1) for s in (state, visitors))
        means = (state["total"] * of_rows + visitors["total"] * of_columns) / 2
        wanted = (1 - smoothing) * wanted + smoothing * means
    loss = jnp.where(facts["valid"], (rows + columns) / 2 - wanted, 0).sum()
    if not gradients:
        return _summary(loss, state, visitors, facts, gradients)

    def second(slopes: dict, visitors: dict) -> tuple[dict, dict]:
        slopes, visitors = dict(slopes), dict(visitors)
        cosines, logits, same, counts = scores(visitors)
        shares = (jnp.exp(logits - rows[:, None]) + jnp.exp(logits - visitors["log_sum"])) / 2
        goal = same
        if smoothing:
            alike = (of_rows[:, None] + visitors["share"]) / 2
            goal = (1 - smoothing) * same + smoothing * alike
        found = jnp.where(counts, shares - goal, 0)
        _note_slopes(slopes, visitors, image, scale, cosines, found)
        return slopes, visitors

    slopes, again = {}, {"text": text, "facts": facts, "log_sum": columns}
    if smoothing:
        again["share"] = of_columns
    _expect_slopes(slopes, again, image, text)
    slopes, again = _around(size, second, slopes, again)
    return _summary(loss, state | slopes, visitors | again, facts, gradients)


def _note_rivals(
    state: dict, visitors: dict, logits: jax.Array, same: jax.Array, counts: jax.Array
) -> None:
    """Each image's logit with its own text, and the highest that it and the texts have besides."""
    state["own"] += jnp.where(same, logits, 0).sum(1)
    rivals = jnp.where(counts & ~same, logits, _LEAST)
    for side, axis in ((state, 1), (visitors, 0)):
        side["rival"] = jnp.maximum(side["rival"], rivals.max(axis))


def _expect_slopes(state: dict, visitors: dict, image: jax.Array, text: jax.Array) -> None:
    state["slope"] = jnp.zeros_like(image)
    visitors["slope"] = jnp.zeros_like(text)
    state["scale"] = state["bias"] = jnp.float32(0)


def _note_slopes(
    state: dict,
    visitors: dict,
    image: jax.Array,
    scale: jax.Array,
    cosines: jax.Array,
    slopes: jax.Array,
) -> None:
    """Adds to the gradients what a block's d loss / d logit [I, J] is worth."""
    state["slope"] += scale * jnp.einsum("ij,je->ie", slopes, visitors["text"], precision="highest")
    visitors["slope"] += scale * jnp.einsum("ij,ie->je", slopes, image, precision="highest")
    state["scale"] += (slopes * cosines).sum()
    state["bias"] += slopes.sum()


def _summary(
    loss: jax.Array, state: dict, visitors: dict, facts: Mapping[str, jax.Array], gradients: bool
) -> tuple[Any, Any]:
    """Sums over all devices; the visitors are home."""
    valid, own = facts["valid"], state["own"]
    right = [(valid & (own >= s["rival"])).sum(dtype=jnp.float32) for s in (state, visitors)]
    total = functools.partial(jax.lax.psum, axis_name=BATCH_AXES)
    values = tuple(map(total, (loss, *right)))
    if not gradients:
        return values, None
    scalars = (total(state["scale"]), total(state["bias"]))
    return values, (state["slope"], visitors["slope"], *scalars)
