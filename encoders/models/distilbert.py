"""DistilBERT (arXiv 1910.01108).

Differences from BERT: half the layers, no token types, no pooler. In training the dropout of the
attention's output is on, as in BERT; transformers' DistilBERT leaves it out.
"""

from __future__ import annotations

from encoders.models.bert import BERT, Pool, TextSize


class DistilBERT(BERT):
    """DistilBERT; attributes as in `BERT`."""

    num_token_types: int = 0
    pool: Pool = "cls"

    SIZES = {"base": TextSize(768, 6, 3072, 12)}  # noqa: RUF012
