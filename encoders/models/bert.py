"""BERT (arXiv 1810.04805), and what the text encoders after it have in common with it.

A family that descends from it is a subclass with other defaults and its own SIZES.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.attention import Attention
from encoders.layers.block import Block, block_flops
from encoders.layers.embedding import TextEmbeddings, restarted_positions
from encoders.layers.initializers import weight_init
from encoders.layers.linear import Linear
from encoders.layers.norm import LayerNorm
from encoders.layers.pooling import pool
from encoders.layers.position import rotary1d
from encoders.layers.relative import RelativeBias, alibi
from encoders.layers.stack import Stack
from encoders.types import Encoded

Activation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "swiglu", "geglu", "geglu_tanh"
]
Positions = Literal["learned", "sinusoidal", "relative_bias", "rotary", "alibi", "none"]
Pool = Literal["pooler", "cls", "mean", "last", "none"]


@dataclasses.dataclass(frozen=True)
class TextSize:
    """A published size.

    Attributes:
      width: D, the size of a token.
      depth: blocks.
      mlp_dim: hidden size of the MLP.
      num_heads: attention heads.
      embedding_dim: size of the embeddings, which are projected to D; None for D itself.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    embedding_dim: int | None = None


class BERT(nn.Module):
    """Bidirectional encoder of token ids: embeddings, blocks, and pooling.

    Attributes:
      variant: a size of SIZES.
      width, depth, mlp_dim, num_heads, embedding_dim: override the variant's.
      vocab_size: ids go from 0 to vocab_size - 1.
      max_length: tokens that there are positions for.
      positions: 'learned' and 'sinusoidal' (fixed) are added to the words, 'rotary' turns queries
        and keys, 'relative_bias' (T5's, one table for all layers) and 'alibi' are added to the
        scores; or 'none'.
      rotary_temperature: base of the frequencies of 'rotary'.
      num_token_types: segments that are told apart; 0 for none.
      pad_id: how positions are counted, see `TextEmbeddings`; it masks nothing, `mask` does.
      pool: 'pooler' (tanh of a linear layer on the first token), 'cls' (the first token), 'mean' of
        the real tokens, 'last' (the last real one), or 'none'.
      mlp: activation of the MLP, or kind of a gated one (see `Mlp`).
      pre_norm: the norms of a block come before attention and MLP, and one more after the last
        block (arXiv 2002.04745).
      qkv_bias, out_bias, mlp_bias, norm_bias: which layers have biases; `out` is the attention's.
      norm_eps: of all layer norms.
      dropout: rate after the embeddings and on the branches' outputs; stream 'dropout'.
      attention_dropout: rate on the attention's weights.
      attention_kernel: 'plain' or 'fused', see `Attention`.
      shared: all layers have the same parameters.
      scan, remat: see `Stack`.
    """

    variant: str = "base"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    embedding_dim: int | None = None
    vocab_size: int = 30522
    max_length: int = 512
    positions: Positions = "learned"
    rotary_temperature: float = 10000.0
    num_token_types: int = 2
    pad_id: int | None = None
    pool: Pool = "pooler"
    mlp: Activation = "gelu"
    pre_norm: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_kernel: Literal["plain", "fused"] = "plain"
    shared: bool = False
    scan: bool = False
    remat: str = "none"

    modality = "text"
    EMBEDDING_NORM = True  # not a field: it belongs to the family

    # Section 3 of the paper.
    SIZES = {  # noqa: RUF012
        "base": TextSize(768, 12, 3072, 12),
        "large": TextSize(1024, 24, 4096, 16),
    }

    @property
    def size(self) -> TextSize:
        """The variant's size with this module's overrides, and embedding_dim a number.

        Raises:
          ConfigError: the variant is unknown.
        """
        return size_of(self)

    @property
    def num_positions(self) -> int:
        """Rows of the position table; counted from pad_id + 1, the first of them are not used."""
        return self.max_length + (0 if self.pad_id is None else self.pad_id + 1)

    def flops(self, length: int) -> float:
        """Forward FLOPs for `length` tokens; a multiply-add counts as two, look-ups as nothing."""
        size = self.size
        total = size.depth * block_flops(length, size.width, size.mlp_dim, self.mlp)
        if size.embedding_dim != size.width:
            total += 2.0 * length * size.embedding_dim * size.width
        if self.pool == "pooler":
            total += 2.0 * size.width * size.width
        return total

    def setup(self) -> None:
        self.embeddings = TextEmbeddings(
            self.vocab_size,
            self.num_positions,
            self.num_token_types,
            self.size.embedding_dim,
            self.pad_id,
            self.norm_eps,
            self.dropout,
            self.positions,
            self.norm_bias,
            self.EMBEDDING_NORM,
        )

    def embed(
        self,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """What the blocks start from, before it is projected to the width: [B, T, E].

        Arguments as of `__call__`. Another encoder can be given the result as its `embedded`, so
        that the two share their tables, as ELECTRA's do.
        """
        self._check(ids, token_types)
        if positions is None and segments is not None:
            positions = restarted_positions(segments)
            if self.pad_id is not None:
                positions = jnp.where(segments > 0, positions + self.pad_id + 1, self.pad_id)
        return self.embeddings(ids, token_types, positions, train=train)

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        positions: jax.Array | None = None,
        embedded: jax.Array | None = None,
        train: bool = False,
        layers: Sequence[int] | Literal["all"] = (),
    ) -> Encoded:
        """Encodes token ids.

        Args:
          ids: [B, T] int32.
          mask: [B, T] bool, True where a token is real, the others are not attended to; or
            [B, T, T] bool, True where one token (the second axis) may attend to another (the last),
            a token being real if it may attend to itself.
          segments: [B, T] int32 in place of `mask`, for rows that several texts were packed into: 0
            for padding; tokens attend within their own segment only, whose positions start anew.
          token_types: [B, T] int32, the type of each token (sentence A or B); None means the first.
          positions: [B, T] int32, rows of the position table; None counts them.
          embedded: [B, T, E] what to start from in place of `embed(ids, ...)`.
          train: whether dropout is on.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.

        Returns:
          Encoded.

        Raises:
          ConfigError: `ids` are no batch of ids or too long, or fields contradict each other.
        """
        real = real_tokens(ids, mask, segments)
        size, length = self.size, ids.shape[1]
        if embedded is None:
            extra = {"segments": segments, "token_types": token_types, "positions": positions}
            embedded = self.embed(ids, **extra, train=train)
        x = embedded
        if size.embedding_dim != size.width:
            kernel = weight_init("trunc_normal").kernel
            x = Linear(size.width, kernel_init=kernel, name="projection")(x)
        stack = self._stack(size)
        nn.share_scope(self, stack)
        places = self._places(length, segments, positions)
        x, hidden = stack(x, mask=mask, segments=segments, train=train, layers=layers, **places)
        if self.pre_norm:
            x = LayerNorm(self.norm_eps, self.norm_bias, name="norm")(x)
        return Encoded(x, real, self._pool(x, real), hidden)

    def _check(self, ids: jax.Array, token_types: jax.Array | None) -> None:
        check_ids(self, ids)
        if ids.shape[1] > self.max_length:
            raise ConfigError(
                f"model.max_length: {ids.shape[1]} tokens are more than the {self.max_length} "
                "that there are positions for."
            )
        if token_types is not None and not self.num_token_types:
            raise ConfigError(f"model: {type(self).__name__} has no token types.")

    def _stack(self, size: TextSize) -> Stack:
        return Stack(size.depth, self._block(size), 0.0, self.scan, self.remat, self.shared)

    def _block(self, size: TextSize) -> functools.partial:
        return functools.partial(
            Block,
            num_heads=size.num_heads,
            mlp_dim=size.mlp_dim,
            mlp=self.mlp,
            qkv_bias=self.qkv_bias,
            mlp_bias=self.mlp_bias,
            norm_bias=self.norm_bias,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            post_norm=not self.pre_norm,
            attention_dropout=self.attention_dropout,
            mlp_dropout=0.0,
            attention=self._attention(),
        )

    def _attention(self) -> Callable[..., nn.Module]:
        return functools.partial(Attention, kernel=self.attention_kernel, out_bias=self.out_bias)

    def _places(
        self, length: int, segments: jax.Array | None, positions: jax.Array | None
    ) -> dict[str, Any]:
        """What the blocks are given to know where tokens stand, beyond what was added to them."""
        heads = self.size.num_heads
        if self.positions == "alibi":
            return {"bias": alibi(heads, length, positions)}
        if self.positions == "relative_bias":
            # Named so that layer-wise learning rates take it for what comes before the blocks.
            bias = RelativeBias(heads, name="relative_embeddings")
            return {"bias": bias(length, positions)}
        if self.positions == "rotary":
            return {"rotary": self._turns(self.rotary_temperature, length, segments, positions)}
        return {}

    def _turns(
        self,
        temperature: float,
        length: int,
        segments: jax.Array | None,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """(sin, cos) that the tokens' queries and keys are turned by, [T, d/2] or [B, T, d/2]."""
        head_dim = self.size.width // self.size.num_heads
        rows = length if positions is None else self.max_length
        tables = [jnp.asarray(table) for table in rotary1d(rows, head_dim, temperature)]
        if positions is None and segments is not None:
            positions = restarted_positions(segments)
        if positions is not None:
            tables = [jnp.take(table, positions, axis=0) for table in tables]
        return tables[0], tables[1]

    def _pool(self, x: jax.Array, mask: jax.Array) -> jax.Array | None:
        if self.pool == "pooler":
            kernel = weight_init("trunc_normal").kernel
            return jnp.tanh(Linear(x.shape[-1], kernel_init=kernel, name="pooler")(x[:, 0]))
        if self.pool == "cls":
            return x[:, 0]
        return None if self.pool == "none" else pool(x, mask, self.pool)


# --- for text encoders of any family --------------------------------------------------------------


def size_of(module: nn.Module) -> TextSize:
    """The size of a module's variant with the module's overrides, and embedding_dim a number.

    Raises:
      ConfigError: the variant is unknown.
    """
    if module.variant not in module.SIZES:
        hint = nearest(module.variant, module.SIZES)
        raise ConfigError(f"model.variant: unknown size '{module.variant}'.{hint}")
    given = {f.name: getattr(module, f.name, None) for f in dataclasses.fields(TextSize)}
    given = {field: value for field, value in given.items() if value is not None}
    size = dataclasses.replace(module.SIZES[module.variant], **given)
    return dataclasses.replace(size, embedding_dim=size.embedding_dim or size.width)


def check_ids(module: nn.Module, ids: jax.Array) -> None:
    """Raises a ConfigError where `ids` are no integers [B, T]."""
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ConfigError(
            f"model: {type(module).__name__} encodes integer ids [B, T], not "
            f"{ids.dtype} {list(ids.shape)}."
        )


def real_tokens(ids: jax.Array, mask: jax.Array | None, segments: jax.Array | None) -> jax.Array:
    """[B, T] bool, which tokens are real; arguments as of `BERT`.

    Raises:
      ConfigError: there are both a mask and segments.
    """
    if segments is not None and mask is not None:
        raise ConfigError("model: takes a mask or segments, not both.")
    if segments is not None:
        return segments > 0
    if mask is None:
        return jnp.ones(ids.shape, bool)
    return mask if mask.ndim == 2 else jnp.diagonal(mask, axis1=1, axis2=2)
