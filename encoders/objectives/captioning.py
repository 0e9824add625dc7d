"""Contrast of images and texts, and captions written from the image (CoCa, arXiv 2205.01917).

What differs from CLIP: the text tower, which attends from left to right, is the lower half of a
decoder. It knows texts alone, and its last token is compared with images. The upper half looks at
the image's tokens as well and predicts the next token of the caption (section 3.2). Training ends,
and the decoder goes: what is kept is two towers.

The authors condense an image to 256 tokens for the decoder, by attention; here it sees them all.
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
from encoders.layers.mlp import Mlp, mlp_flops
from encoders.layers.norm import LayerNorm
from encoders.layers.stack import Stack
from encoders.models.clip_text import causal_mask
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.heads import VocabularyHead, cross_entropy, word_table
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


class CaptionDecoder(nn.Module):
    """The upper half of the decoder: from tokens of text that know no image to ones that do.

    Attributes:
      depth: blocks.
      num_heads, mlp_dim: of the blocks; None for those of the text tower.
      scan, remat: see `Stack`.
    """

    depth: int = 12
    num_heads: int | None = None
    mlp_dim: int | None = None
    scan: bool = False
    remat: str = "none"

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
        block = functools.partial(
            CaptionBlock,
            num_heads=self.num_heads or tower.size.num_heads,
            mlp_dim=self.mlp_dim or tower.size.mlp_dim,
            mlp=tower.mlp,
            norm_eps=tower.norm_eps,
        )
        stack = Stack(self.depth, block, 0.0, self.scan, self.remat)
        nn.share_scope(self, stack)
        memory = {"memory": image.tokens, "memory_mask": image.mask}
        x, _ = stack(text.tokens, mask=mask, train=train, **memory)
        return LayerNorm(tower.norm_eps, name="norm")(x)

    def flops(self, tower: nn.Module, length: int, memory: int) -> float:
        """Forward FLOPs for `length` tokens that look at `memory` tokens."""
        width, mlp_dim = tower.size.width, self.mlp_dim or tower.size.mlp_dim
        block = attention_flops(length, length, width) + attention_flops(length, memory, width)
        return self.depth * (block + mlp_flops(length, width, mlp_dim, tower.mlp))


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
        """Embeddings as in contrast, and of each caption three sums over its tokens, float32 [B].

        Those are 'caption_loss', 'caption_right' (tokens that scored highest) and 'caption_tokens'.

        Raises:
          ConfigError: the text tower sees what it should predict.
        """
        (image, image_vectors), (text, text_vectors) = self.encode(batch, train=train)
        scores = self.scores(image, text, batch, train)[:, :-1]
        labels, segments = batch["ids"][:, 1:], batch["segments"]
        counts = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
        counts = counts * valid_weights(batch)[:, None]
        right = (scores.argmax(-1) == labels) * counts
        return {
            "image": image_vectors,
            "text": text_vectors,
            "caption_loss": (cross_entropy(scores, labels) * counts).sum(1),
            "caption_right": right.sum(1),
            "caption_tokens": counts.sum(1),
        }

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
        tokens = embedded["caption_tokens"].sum()
        captions = embedded["caption_loss"].sum()
        metrics = {
            **found.metrics,
            "contrast_loss": (found.loss, found.weight),
            "caption_loss": (captions, tokens),
            "caption_accuracy": (embedded["caption_right"].sum(), tokens),
        }
        mean = captions / jnp.maximum(tokens, 1)
        loss = self.contrast_weight * found.loss + self.caption_weight * mean * found.weight
        return Outcome(loss, found.weight, metrics)

    def flops(self, input_size: tuple[tuple[int, int], int]) -> float:
        """Forward FLOPs per training example."""
        (image_size, length), tower = input_size, self.encoder.text
        image = self.encoder.image
        memory = image.num_kept(image_size) + image.num_prefix
        decoder = self.decoder.flops(tower, length, memory) + length * self.head.flops(tower)
        return super().flops(input_size) + decoder
