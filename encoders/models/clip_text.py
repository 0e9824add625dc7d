"""Text towers of CLIP (arXiv 2103.00020, section 2.4) and SigLIP (2303.15343).

Differences from BERT: norms come first, and none follows the embeddings; no token types; no
dropout; eps 1e-5. CLIP's attends from left to right and has quick-GELU; the last real token, which
ends every text, stands for it. SigLIP's attends both ways (causal=False), has the tanh form of GELU
and eps 1e-6, and reads padding as well: its last token is the row's last.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from encoders.layers.attention import same_segment
from encoders.models.bert import BERT, Activation, Pool, TextSize, real_tokens
from encoders.types import Encoded


class CLIPText(BERT):
    """CLIP's text tower; other attributes as in `BERT`.

    Attributes:
      causal: whether a token attends to itself and those before it only.
    """

    variant: str = "M"
    vocab_size: int = 49408
    max_length: int = 77
    num_token_types: int = 0
    pool: Pool = "last"
    mlp: Activation = "quick_gelu"
    pre_norm: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    causal: bool = True

    EMBEDDING_NORM = False

    # Named as ViTs of these sizes are. M: the text tower of CLIP B/32 and B/16; B: of CLIP L/14 and
    # SigLIP B; L: of OpenCLIP H/14 and g/14 and SigLIP L; So400m: of SigLIP So400m; bigG: OpenCLIP.
    SIZES = {  # noqa: RUF012
        "M": TextSize(512, 12, 2048, 8),
        "B": TextSize(768, 12, 3072, 12),
        "L": TextSize(1024, 24, 4096, 16),
        "So400m": TextSize(1152, 27, 4304, 16),
        "bigG": TextSize(1280, 32, 5120, 20),
    }

    def __call__(
        self,
        ids: jax.Array,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        embedded: jax.Array | None = None,
        train: bool = False,
        **others: Any,
    ) -> Encoded:
        """Encodes token ids; arguments as of `BERT`, whose `mask` is [B, T] where it is causal."""
        if embedded is None:
            extra = {"segments": segments, "positions": positions}
            embedded = self.embed(ids, **extra, train=train)
        if self.causal:
            mask, segments = causal_mask(ids, mask, segments), None
        given = {"mask": mask, "segments": segments, "positions": positions, "embedded": embedded}
        return super().__call__(ids, **given, train=train, **others)


def causal_mask(
    ids: jax.Array, mask: jax.Array | None = None, segments: jax.Array | None = None
) -> jax.Array:
    """Who may attend to whom from left to right; arguments as of `BERT`.

    Returns:
      [B, T, T] bool, True where one token (the second axis) may attend to another (the last).

    Raises:
      ConfigError: there are both a mask and segments.
    """
    real = real_tokens(ids, mask, segments)
    allowed = real[:, None, :] & real[:, :, None]
    if segments is not None:
        allowed = same_segment(segments)
    elif mask is not None and mask.ndim == 3:
        allowed = mask
    return allowed & jnp.tri(ids.shape[1], dtype=bool)
