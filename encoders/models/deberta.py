"""DeBERTa-v3 (arXiv 2111.09543), the DeBERTa of arXiv 2006.03654 trained as ELECTRA is.

Differences from BERT: attention with content and relative positions apart, in logarithmic buckets
(`layers.disentangled`), whose table is normalised; no absolute positions in the input, no token
types, no pooler; the norm of the embeddings comes after their projection, and padding is zero from
there on; layer norms with eps 1e-7; 128,100 words (mDeBERTa is size base with 251,000).

For masked-language modelling, and so for the generator of replaced-token detection, absolute
positions come in at the end: the enhanced mask decoder (section 3.2 of the first paper).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.block import block_flops
from encoders.layers.disentangled import (
    DisentangledAttention,
    disentangled_flops,
    relative_rows,
)
from encoders.layers.dropout import Dropout
from encoders.layers.embedding import WordTable, restarted_positions
from encoders.layers.initializers import trunc_normal, weight_init
from encoders.layers.linear import Linear
from encoders.layers.lookup import lookup
from encoders.layers.norm import LayerNorm
from encoders.layers.stack import REMAT, resolve_layers
from encoders.models.bert import BERT, Pool, TextSize, real_tokens
from encoders.types import Encoded


class DeBERTa(BERT):
    """DeBERTa-v3; attributes as in `BERT`, and

    Attributes:
      position_buckets: S: tokens up to S / 2 away have a relative position of their own.
      max_distance: tokens further away than this have the same one.
      mask_decoder: the tokens returned are those of the enhanced mask decoder: the last block,
        applied twice to the output of the one before it, whose queries start with absolute
        positions. For pre-training on masked tokens; what is trained so is used without.
    """

    vocab_size: int = 128100
    positions: Literal["disentangled"] = "disentangled"
    position_buckets: int = 256
    max_distance: int = 512
    num_token_types: int = 0
    pool: Pool = "cls"
    norm_eps: float = 1e-7
    pre_norm: Literal[False] = False
    attention_kernel: Literal["plain"] = "plain"
    mask_decoder: bool = False

    # How replaced-token detection is done with it (section 3.1 of the paper, and its code).
    GENERATOR = {"mask_decoder": True}  # noqa: RUF012
    TOKEN_CONTEXT = True

    # Those of the released weights.
    SIZES = {  # noqa: RUF012
        "xsmall": TextSize(384, 12, 1536, 6),
        "small": TextSize(768, 6, 3072, 12),
        "base": TextSize(768, 12, 3072, 12),
        "large": TextSize(1024, 24, 4096, 16),
    }

    def flops(self, length: int) -> float:
        """Forward FLOPs for `length` tokens; a multiply-add counts as two, look-ups as nothing."""
        size = self.size
        rows, _ = relative_rows(length, self.position_buckets, self.max_distance)
        positions = disentangled_flops(length, rows.stop - rows.start, size.width)
        total = super().flops(length) + size.depth * positions
        if self.mask_decoder:
            total += block_flops(length, size.width, size.mlp_dim, self.mlp) + positions
        return total

    def setup(self) -> None:
        self.embeddings = WordTable(self.vocab_size, self.size.embedding_dim)

    def embed(
        self,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Rows of the word table, [B, T, E]; nothing else than `ids` has a part in them."""
        self._check(ids, token_types)
        return self.embeddings(ids)

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
        """Encodes ids; arguments and errors as of `BERT`, `positions` those of `mask_decoder`."""
        real = real_tokens(ids, mask, segments)
        size, packed = self.size, segments
        x = self.embed(ids, token_types=token_types) if embedded is None else embedded
        if mask is not None and mask.ndim == 2:
            # Not only keys but queries too are masked here: padding sees everything, alike.
            mask, segments = None, mask.astype(jnp.int32)
        x = self._start(x, real, train)
        context = {
            "mask": mask,
            "segments": segments,
            "train": train,
            **self._places(ids.shape[1], segments, positions),
        }
        stack = self._stack(size)
        nn.share_scope(self, stack)
        if not self.mask_decoder:
            x, hidden = stack(x, layers=layers, **context)
            return Encoded(x, real, self._pool(x, real), hidden)
        _, every = stack(x, layers="all", **context)
        if positions is None:
            positions = jnp.arange(ids.shape[1]) if packed is None else restarted_positions(packed)
        x = self._decode(every[size.depth - 2] if size.depth > 1 else x, positions, context)
        hidden = {layer: every[layer] for layer in resolve_layers(layers, size.depth)}
        return Encoded(x, real, self._pool(x, real), hidden)

    def _attention(self) -> Callable[..., nn.Module]:
        return functools.partial(DisentangledAttention, out_bias=self.out_bias)

    def _start(self, embedded: jax.Array, real: jax.Array, train: bool) -> jax.Array:
        """[B, T, E] words -> [B, T, D] what the blocks start from, zero where there is padding."""
        x, width = embedded, self.size.width
        if x.shape[-1] != width:
            kernel = weight_init("trunc_normal").kernel
            x = Linear(width, use_bias=False, kernel_init=kernel, name="projection")(x)
        x = LayerNorm(self.norm_eps, name="norm_embeddings")(x)
        x = jnp.where(real[..., None], x, 0)
        return Dropout(self.dropout, name="drop_embeddings")(x, train=train)

    def _places(
        self, length: int, segments: jax.Array | None, positions: jax.Array | None
    ) -> dict[str, Any]:
        """Normalised rows of the table of relative positions, and which distance has which."""
        buckets, distance = self.position_buckets, self.max_distance
        if buckets < 2 or buckets % 2:
            raise ConfigError(
                f"model.position_buckets: {buckets} is not an even number from 2 on; half of them "
                "are of near tokens."
            )
        if distance - 1 <= buckets // 2:
            raise ConfigError(
                f"model.max_distance: {distance} leaves no distances for the far half of the "
                f"{buckets} position_buckets; it must be more than {buckets // 2 + 1}."
            )
        shape = (2 * buckets, self.size.width)
        table = self.param("relative_embeddings", trunc_normal(0.02), shape)
        used, rows = relative_rows(length, buckets, distance)
        table = LayerNorm(self.norm_eps, name="norm_relative_embeddings")(table[used])
        return {"relative": (table, jnp.asarray(rows))}

    def _decode(self, x: jax.Array, places: jax.Array, context: dict[str, Any]) -> jax.Array:
        """The enhanced mask decoder.

        Args:
          x: [B, T, D] output of the last block but one.
          places: [T] or [B, T] int32, absolute positions.
          context: what the blocks are given.

        Returns:
          [B, T, D].
        """
        shape = (self.max_length, self.size.width)
        table = self.param("mask_positions", trunc_normal(0.02), shape)
        params = self.variables["params"]
        if self.scan:
            last = jax.tree.map(lambda leaf: leaf[-1], params["blocks"])
        else:
            last = params["blocks_0" if self.shared else f"blocks_{self.size.depth - 1}"]
        block = self._block(self.size)(parent=None)

        def apply(params: Any, query: jax.Array, memory: jax.Array, rngs: Any) -> jax.Array:
            return block.apply({"params": params}, query, memory=memory, rngs=rngs, **context)

        if REMAT[self.remat] is not None:
            apply = jax.checkpoint(apply, policy=REMAT[self.remat])
        query = x + lookup(table, places)
        for _ in range(2):
            rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
            query = apply(last, query, x, rngs)
        return query
