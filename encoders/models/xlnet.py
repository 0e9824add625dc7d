"""XLNet (arXiv 1906.08237).

Differences from BERT: positions are relative, sinusoidal, and part of every attention, so that no
length is too long; token types count only as equal or not; embeddings are not normalised, and have
the blocks' width; projections of the attention have no biases. Pre-training predicts tokens in a
random order, by a second stream of queries that do not know the word they stand for
(`two_streams`); afterwards the content stream is an encoder like any other.

Fed by its own tokenizer a text is `A <sep> B <sep> <cls>`, padded before: relative positions make
it no matter where padding stands, and `mask` says where. What stands for a whole text is then its
last token (`pool='last'`); with a tokenizer that puts it first, as BERT's, it is `pool='cls'`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.attention import same_segment
from encoders.layers.block import Block
from encoders.layers.dropout import Dropout
from encoders.layers.embedding import WordTable
from encoders.layers.initializers import trunc_normal
from encoders.layers.mlp import mlp_flops
from encoders.layers.pooling import pool
from encoders.layers.stack import Stack
from encoders.layers.two_stream import (
    Relation,
    TwoStreamAttention,
    distance_encodings,
    mirror,
    two_stream_flops,
)
from encoders.models.bert import Activation, TextSize, check_ids, real_tokens, size_of
from encoders.types import Encoded

Layers = Sequence[int] | Literal["all"]


class XLNet(nn.Module):
    """XLNet's content stream as an encoder, and both streams for pre-training.

    Attributes:
      variant: a size of SIZES.
      width, depth, mlp_dim, num_heads: override the variant's.
      vocab_size: ids go from 0 to vocab_size - 1.
      clamp_length: distances beyond it count as it; None for no limit.
      pool: 'last' or 'cls' (the last or first real token), 'mean' of the real tokens, or 'none'.
      mlp: activation of the MLP.
      norm_eps: of all layer norms.
      dropout: rate on embeddings, distances, in and after the MLP, on the attention's output, and
        on the last block's; stream 'dropout'.
      attention_dropout: rate on the attention's weights.
      scan, remat: see `Stack`.
    """

    variant: str = "base"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    vocab_size: int = 32000
    clamp_length: int | None = None
    pool: Literal["last", "cls", "mean", "none"] = "last"
    mlp: Activation = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    scan: bool = False
    remat: str = "none"

    modality = "text"
    # Sentences A and B, <cls>, <sep> and padding are told apart; there is no table of them.
    num_token_types = 5
    pad_id = None
    # The head's scores are products with the words' table and a bias, nothing between.
    HEAD = {"transform": False}  # noqa: RUF012

    # Section A.4 of the paper: the sizes of BERT.
    SIZES = {  # noqa: RUF012
        "base": TextSize(768, 12, 3072, 12),
        "large": TextSize(1024, 24, 4096, 16),
    }

    @property
    def size(self) -> TextSize:
        """The variant's size with this module's overrides; embedding_dim is the width.

        Raises:
          ConfigError: the variant is unknown.
        """
        return size_of(self)

    def flops(self, length: int, targets: int = 0) -> float:
        """Forward FLOPs for `length` tokens and `targets` queries; a multiply-add counts as two."""
        size = self.size
        attention = two_stream_flops(length, targets, length, size.width)
        return size.depth * (
            attention + mlp_flops(length + targets, size.width, size.mlp_dim, self.mlp)
        )

    def setup(self) -> None:
        self.embeddings = WordTable(self.vocab_size, self.size.width)

    def __call__(
        self,
        ids: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        backward: jax.Array | None = None,
        memory: jax.Array | None = None,
        train: bool = False,
        layers: Layers = (),
    ) -> Encoded:
        """Encodes token ids; every token sees itself, whatever the mask says.

        Args:
          ids: [B, T] int32.
          mask: [B, T] bool, True where a token is real, the others are seen by themselves only; or
            [B, T, T] bool, True where one token (the second axis) may attend to another (the last),
            a token being real if it may attend to itself.
          segments: [B, T] int32 in place of `mask`, for rows that several texts were packed into: 0
            for padding; tokens attend within their own segment only.
          token_types: [B, T] int32, the type of each token; None means that all are of one.
          backward: [B] bool, True for rows that hold a text from its end to its beginning, whose
            distances count the other way; None for none. (Half of the rows of the paper's
            pre-training, its bidirectional input pipeline.)
          memory: [depth, B, S, D] what `remember` kept of the S tokens before these. Every token
            sees all of it, as of token type 0. None for none.
          train: whether dropout is on.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.

        Returns:
          Encoded.

        Raises:
          ConfigError: `ids` are no batch of ids, or fields contradict each other.
        """
        given = {"mask": mask, "segments": segments, "token_types": token_types}
        given |= {"backward": backward, "memory": memory}
        return self._streams(ids, **given, train=train, layers=layers)[0]

    def two_streams(
        self,
        ids: jax.Array,
        targets: jax.Array,
        visible: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        backward: jax.Array | None = None,
        memory: jax.Array | None = None,
        train: bool = False,
        layers: Layers = (),
    ) -> tuple[Encoded, Encoded]:
        """Encodes token ids, and asks what stands at some of their places (section 2.3).

        Args:
          ids: [B, T] int32, the target tokens among them: `visible` hides them.
          targets: [B, M] int32, the places that are asked for.
          visible: [B, T, T] bool, True where a token (the second axis) may see another (the last).
            A target that may see itself gives itself away. In the content stream every token sees
            itself besides.
          mask, segments, token_types, backward, memory, train, layers: as in `__call__`.

        Returns:
          Encoded of the content stream, and of the query stream: tokens [B, M, D], all of them
          real, which are not pooled.

        Raises:
          ConfigError: as in `__call__`.
        """
        given = {"mask": mask, "segments": segments, "token_types": token_types}
        given |= {"backward": backward, "memory": memory}
        content, query = self._streams(ids, targets, visible, **given, train=train, layers=layers)
        return content, query

    def remember(
        self,
        ids: jax.Array,
        encoded: Encoded,
        memory: jax.Array | None = None,
        length: int | None = None,
    ) -> jax.Array:
        """What a call on the tokens that follow is given as `memory`; no gradient flows into it.

        In the paper's pre-training a row of 512 goes on where the row before it had its first 256
        (`reuse_len`) and remembers those. Here a batch is a function of (seed, step), which knows
        nothing of the one before, and pre-training has no memory; it is for long texts.

        Args:
          ids: [B, T] int32 that were encoded.
          encoded: the content stream, with the outputs of all blocks but the last in `hidden`.
          memory: [depth, B, S, D] what that call had been given.
          length: how many tokens to keep, the last ones; None keeps all.

        Returns:
          [depth, B, length, D], the input of every block.
        """
        inputs = [self.embeddings(ids)]
        inputs += [encoded.hidden[layer] for layer in range(self.size.depth - 1)]
        kept = jnp.stack(inputs)
        if memory is not None:
            kept = jnp.concatenate([memory, kept], axis=2)
        begin = 0 if length is None else max(kept.shape[2] - length, 0)
        return jax.lax.stop_gradient(kept[:, :, begin:])

    @nn.compact
    def _streams(
        self,
        ids: jax.Array,
        targets: jax.Array | None = None,
        visible: jax.Array | None = None,
        *,
        mask: jax.Array | None,
        segments: jax.Array | None,
        token_types: jax.Array | None,
        backward: jax.Array | None,
        memory: jax.Array | None,
        train: bool,
        layers: Layers,
    ) -> list[Encoded]:
        check_ids(self, ids)
        if segments is not None and memory is not None:
            raise ConfigError("model: rows that several texts were packed into have no memory.")
        size, (rows, length) = self.size, ids.shape
        remembered = 0 if memory is None else memory.shape[2]
        real, sees = _who_sees_whom(ids, visible, mask, segments)
        x = self.embeddings(ids)
        mask_token = self.param("mask_token", trunc_normal(0.02), (size.width,))
        if targets is not None:
            asking = jnp.broadcast_to(mask_token, (rows, targets.shape[1], size.width))
            x = jnp.concatenate([x, asking], axis=1)
        drop = functools.partial(Dropout(self.dropout), train=train)
        keys = remembered + length
        distances = distance_encodings(keys, length, size.width, self.clamp_length)
        relation = Relation(
            distances=drop(distances),
            mirrored=None if backward is None else drop(mirror(distances)),
            backward=backward,
            targets=targets,
            strange=_with_targets(_strange(token_types, remembered), targets),
        )
        allowed = None
        if sees is not None:
            content = sees | jnp.eye(length, dtype=bool)
            allowed = _with_targets(sees, targets, content)
            allowed = jnp.pad(allowed, ((0, 0), (0, 0), (remembered, 0)), constant_values=True)
        context, kinds = {"mask": allowed, "relation": relation}, None
        if memory is not None:
            kinds = tuple(range(size.depth))
            context["kind_context"] = [{"memory": layer} for layer in memory]
        stack = Stack(size.depth, self._block(size), 0.0, self.scan, self.remat, kinds=kinds)
        nn.share_scope(self, stack)
        x, hidden = stack(drop(x), **context, train=train, layers=layers)
        x = drop(x)
        tokens = x[:, :length]
        pooled = None if self.pool == "none" else pool(tokens, real, self.pool)
        first = {layer: y[:, :length] for layer, y in hidden.items()}
        streams = [Encoded(tokens, real, pooled, first)]
        if targets is not None:
            second = {layer: y[:, length:] for layer, y in hidden.items()}
            streams.append(Encoded(x[:, length:], jnp.ones(targets.shape, bool), None, second))
        return streams

    def _block(self, size: TextSize) -> functools.partial[Any]:
        return functools.partial(
            Block,
            num_heads=size.num_heads,
            mlp_dim=size.mlp_dim,
            mlp=self.mlp,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            post_norm=True,
            attention_dropout=self.attention_dropout,
            attention=TwoStreamAttention,
        )


def _who_sees_whom(
    ids: jax.Array,
    visible: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Which tokens [B, T] are real, and who [B, T, T] may see whom; None for everyone."""
    real, sees = real_tokens(ids, mask, segments), mask
    if segments is not None:
        sees = same_segment(segments)
    elif mask is not None and mask.ndim == 2:
        sees = jnp.broadcast_to(mask[:, None], (*ids.shape, ids.shape[1]))
    if visible is not None:
        sees = visible if sees is None else sees & visible
    return real, sees


def _strange(token_types: jax.Array | None, remembered: int) -> jax.Array | None:
    """[B, T, K] bool, where token types differ; None where all are of one."""
    if token_types is None:
        return None
    keys = jnp.pad(token_types, ((0, 0), (remembered, 0)))
    return token_types[:, :, None] != keys[:, None]


def _with_targets(
    pairs: jax.Array | None, targets: jax.Array | None, content: jax.Array | None = None
) -> jax.Array | None:
    """`content`, or else `pairs` [B, T, K], and behind it the targets' rows of `pairs`."""
    content = pairs if content is None else content
    if pairs is None or targets is None:
        return content
    asked = jnp.take_along_axis(pairs, targets[..., None], axis=1)
    return jnp.concatenate([content, asked], axis=1)
