"""ALBERT (arXiv 1909.11942).

Differences from BERT: all layers share one block; embeddings of size 128, projected to the width;
the tanh approximation of GELU; no dropout (version 2 of the weights, section 4.8 of the paper).
"""

from __future__ import annotations

from encoders.models.bert import BERT, Activation, TextSize


class ALBERT(BERT):
    """ALBERT; attributes as in `BERT`."""

    vocab_size: int = 30000
    mlp: Activation = "gelu_tanh"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    shared: bool = True

    # Table 1 of the paper; the released xlarge has 16 heads.
    SIZES = {  # noqa: RUF012
        "base": TextSize(768, 12, 3072, 12, 128),
        "large": TextSize(1024, 24, 4096, 16, 128),
        "xlarge": TextSize(2048, 24, 8192, 16, 128),
        "xxlarge": TextSize(4096, 12, 16384, 64, 128),
    }
