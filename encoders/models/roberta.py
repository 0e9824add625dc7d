"""RoBERTa (arXiv 1907.11692).

Differences from BERT: byte-level vocabulary; positions count the tokens that are not padding, from
2 on; one token type, so none in effect; no next-sentence task, so nothing trained the pooler and
the first token stands for the text; layer norms with eps 1e-5; GELU in the vocabulary head whatever
the MLP's activation. CodeBERT, GraphCodeBERT and UniXcoder are RoBERTas of size base.
"""

from __future__ import annotations

from encoders.models.bert import BERT, Pool


class RoBERTa(BERT):
    """RoBERTa; attributes as in `BERT`."""

    vocab_size: int = 50265
    num_token_types: int = 1
    pad_id: int | None = 1
    pool: Pool = "cls"
    norm_eps: float = 1e-5

    HEAD = {"activation": "gelu"}  # noqa: RUF012
