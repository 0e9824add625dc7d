"""Captions written from the image, and their contrast with images (CoCa, arXiv 2205.01917).

What differs in CoCa from CLIP: the text tower, which attends from left to right, is the lower half
of a decoder. It knows texts alone, and its last token is compared with images. The upper half looks
at the image's tokens as well and predicts the next token of the caption (section 3.2). Training
ends, and the decoder goes: what is kept is two towers.

The authors condense an image to 256 tokens for the decoder, by attention; here it sees them all.

`TextDecoder` is one that shares nothing with the text tower, which may then look both ways (LocCa,
2403.19596).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.attention import Attention, attention_flops
from encoders.layers.initializers import trunc_normal
from encoders.layers.lookup import lookup
from encoders.layers.mlp import Mlp, mlp_flops
from encoders.layers.norm import LayerNorm
from encoders.layers.stack import Stack
from encoders.models.clip_text import causal_mask
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.heads import VocabularyHead, cross_entropy, products, word_table
from encoders.objectives.image_text import SoftmaxContrast
from encoders.types import Encoded, Outcome


class CaptionBlock(nn.Module):
    """Self-attention, attention to a memory, and an MLP, each after a norm and added to its input.

    Attributes:
      num_heads, mlp_dim, mlp, norm_eps: as in `Block`.
    """

    num_heads: int
    mlp_dim: int
    mlp: str = "gelu"
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        memory: jax.Array,
        mask: jax.Array,
        memory_mask: jax.Array | None = None,
        branch_scale: None = None,
        train: bool = False,
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: [B, T, D].
          memory: [B, N, M] what is attended to besides.
          mask: [B, T, T] bool, which token (the second axis) may attend to which (the last).
          memory_mask: [B, N] bool, what is real of the memory; None for all.
          branch_scale: of drop path, which it does not have.
          train: whether dropout, which it does not have either, is on.

        Returns:
          [B, T, D].
        """
        del branch_scale

        def norm(number: int) -> LayerNorm:
            return LayerNorm(self.norm_eps, name=f"norm{number}")

        attention = Attention(self.num_heads, name="attention")
        x = x + attention(norm(1)(x), mask=mask, train=train)
        look = Attention(self.num_heads, name="cross_attention")
        x = x + look(norm(2)(x), memory, mask=memory_mask, train=train)
        return x + Mlp(self.mlp_dim, self.mlp, name="mlp")(norm(3)(x), train=train)


class _Decoder(nn.Module):
    """Blocks of the text tower's kind that look at the image; see those below for the fields."""

    depth: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    scan: bool = False
    remat: str = "none"

    def look(
        self, x: jax.Array, image: Encoded, mask: jax.Array, tower: nn.Module, train: bool
    ) -> jax.Array:
        """[B, T, D] after all blocks and a norm, from [B, T, D]; mask as of `CaptionBlock`."""
        block = functools.partial(
            CaptionBlock,
            num_heads=self.num_heads or tower.size.num_heads,
            mlp_dim=self.mlp_dim or tower.size.mlp_dim,
            mlp=tower.mlp,
            norm_eps=tower.norm_eps,
        )
        stack = Stack(self.blocks(tower), block, 0.0, self.scan, self.remat)
        nn.share_scope(self, stack)
        memory = {"memory": image.tokens, "memory_mask": image.mask}
        x, _ = stack(x, mask=mask, train=train, **memory)
        return LayerNorm(tower.norm_eps, name="norm")(x)

    def blocks(self, tower: nn.Module) -> int:
        """How many there are."""
        return self.depth or max(1, tower.size.depth // 2)

    def flops(self, tower: nn.Module, length: int, memory: int) -> float:
        """Forward FLOPs for `length` tokens that look at `memory` tokens."""
        width, mlp_dim = tower.size.width, self.mlp_dim or tower.size.mlp_dim
        block = attention_flops(length, length, width) + attention_flops(length, memory, width)
        return self.blocks(tower) * (block + mlp_flops(length, width, mlp_dim, tower.mlp))


class CaptionDecoder(_Decoder):
    """The upper half of CoCa's decoder: from tokens of text that know no image to ones that do.

    Attributes:
      depth: blocks.
      num_heads, mlp_dim: of the blocks; None for those of the text tower.
      scan, remat: see `Stack`.
    """

    depth: int | None = 12

    @nn.compact
    def __call__(
        self, text: Encoded, image: Encoded, mask: jax.Array, tower: nn.Module, train: bool = False
    ) -> jax.Array:
        """[B, T, D] for what the towers make of texts and images.

        Args:
          text, image: of the towers.
          mask: [B, T, T] bool, as of `CaptionBlock`.
          tower: the text tower.
          train: whether this is training.
        """
        return self.look(text.tokens, image, mask, tower, train)


class TextDecoder(_Decoder):
    """A decoder with words of its own that knows nothing but the image (LocCa, arXiv 2403.19596).

    It reads from left to right, beginning with a learned token, or nothing at all: then it predicts
    every token from its place and the image (parallel prediction of CapPa, arXiv 2306.07915).
    Scores are products with its own table of words.

    Attributes:
      depth: blocks; None for half of the text tower's.
      num_heads, mlp_dim, scan, remat: as in `CaptionDecoder`.
    """

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        image: Encoded,
        parallel: jax.Array,
        tower: nn.Module,
        train: bool = False,
    ) -> jax.Array:
        """Scores every token of a caption.

        Args:
          ids: [B, T] int32.
          image: of the image tower.
          parallel: [B] bool, captions of which nothing is read.
          tower: the text tower, whose sizes it has.
          train: whether this is training.

        Returns:
          float32 [B, T, V], of what stands there.
        """
        width, init = tower.size.width, trunc_normal(0.02)
        words = self.param("words", init, (tower.vocab_size, width))
        positions = self.param("positions", init, (tower.max_length, width))
        first = self.param("start_token", init, (width,)).astype(words.dtype)
        nothing = self.param("mask_token", init, (width,)).astype(words.dtype)
        batch, length = ids.shape
        first = jnp.broadcast_to(first, (batch, 1, width))
        before = jnp.concatenate([first, lookup(words, ids[:, :-1])], axis=1)
        parallel = parallel[:, None, None]
        x = jnp.where(parallel, nothing, before) + positions[:length].astype(words.dtype)
        mask = jnp.tri(length, dtype=bool) | parallel
        return products(self.look(x, image, mask, tower, train), words)

    def flops(self, tower: nn.Module, length: int, memory: int) -> float:
        """Forward FLOPs for `length` tokens, with their scores, that look at `memory` tokens."""
        scores = 2.0 * length * tower.size.width * tower.vocab_size
        return super().flops(tower, length, memory) + scores


def caption_sums(scores: jax.Array, labels: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
    """Sums over the tokens of each caption, float32 [B].

    Args:
      scores: float32 [B, T, V].
      labels: [B, T] int32, what stands there.
      counts: [B, T], which of them count.

    Returns:
      'caption_loss', 'caption_right' (tokens that scored highest) and 'caption_tokens'.
    """
    counts = counts.astype(jnp.float32)
    return {
        "caption_loss": (cross_entropy(scores, labels) * counts).sum(1),
        "caption_right": ((scores.argmax(-1) == labels) * counts).sum(1),
        "caption_tokens": counts.sum(1),
    }


def with_captions(
    found: Outcome, sums: Mapping[str, jax.Array], contrast_weight: float, caption_weight: float
) -> Outcome:
    """A contrast's outcome, and the mean over tokens of what `caption_sums` gave, weighed."""
    tokens, captions = sums["caption_tokens"].sum(), sums["caption_loss"].sum()
    metrics = {
        **found.metrics,
        "contrast_loss": (found.loss, found.weight),
        "caption_loss": (captions, tokens),
        "caption_accuracy": (sums["caption_right"].sum(), tokens),
    }
    mean = captions / jnp.maximum(tokens, 1)
    loss = contrast_weight * found.loss + caption_weight * mean * found.weight
    return Outcome(loss, found.weight, metrics)


class ContrastCaption(SoftmaxContrast):
    """Softmax contrast, and the next token of every caption from those before it and the image.

    The loss is contrast_weight times the contrast's mean over examples, plus caption_weight times
    the captions' mean over the tokens of the whole batch (equation 4 of the paper).

    Attributes:
      decoder: what looks at the image.
      head: scores of the vocabulary; by default products with the text tower's word table.
      contrast_weight, caption_weight: 1 and 2 in section 4.1.
    """

    decoder: CaptionDecoder = dataclasses.field(default_factory=lambda: CaptionDecoder(parent=None))
    head: VocabularyHead = dataclasses.field(
        default_factory=lambda: VocabularyHead(transform=False, bias=False, parent=None)
    )
    contrast_weight: float = 1.0
    caption_weight: float = 2.0

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """Embeddings as in contrast, and `caption_sums`.

        Raises:
          ConfigError: the text tower sees what it should predict.
        """
        (image, image_vectors), (text, text_vectors) = self.encode(batch, train=train)
        scores = self.scores(image, text, batch, train)[:, :-1]
        labels, segments = batch["ids"][:, 1:], batch["segments"]
        counts = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
        counts = counts * valid_weights(batch)[:, None]
        vectors = {"image": image_vectors, "text": text_vectors}
        return {**vectors, **caption_sums(scores, labels, counts)}

    def scores(self, image: Encoded, text: Encoded, batch: Batch, train: bool) -> jax.Array:
        """float32 [B, T, V], of what comes after each token."""
        tower = self.encoder.text
        if not getattr(tower, "causal", False):
            raise ConfigError(
                "objective: a caption is predicted from left to right; model.text must be a "
                "'clip_text' with causal=True."
            )
        mask = causal_mask(batch["ids"], segments=batch["segments"])
        tokens = self.decoder(text, image, mask, tower, train)
        return self.head(tokens, tower, word_table(tower))

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a whole batch from its embeddings and its captions' losses."""
        found = super().compare(embedded, batch)
        return with_captions(found, embedded, self.contrast_weight, self.caption_weight)

    def flops(self, input_size: tuple[tuple[int, int], int]) -> float:
        """Forward FLOPs per training example."""
        (image_size, length), tower = input_size, self.encoder.text
        image = self.encoder.image
        memory = image.num_kept(image_size) + image.num_prefix
        decoder = self.decoder.flops(tower, length, memory) + length * self.head.flops(tower)
        return super().flops(input_size) + decoder
