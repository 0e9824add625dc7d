"""ELECTRA (arXiv 2003.10555), the discriminator that is kept after pre-training.

Differences from BERT: embeddings of their own size, projected to the width, in size small; no
pooler.
"""

from __future__ import annotations

from encoders.models.bert import BERT, Pool, TextSize


class ELECTRA(BERT):
    """ELECTRA; attributes as in `BERT`."""

    pool: Pool = "cls"

    HEAD = {"activation": "gelu"}  # noqa: RUF012 (the generator's, whatever the MLP's)

    # Table 6 of the paper.
    SIZES = {  # noqa: RUF012
        "small": TextSize(256, 12, 1024, 4, 128),
        "base": TextSize(768, 12, 3072, 12),
        "large": TextSize(1024, 24, 4096, 16),
    }
