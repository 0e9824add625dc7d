"""The special ids of a tokenizer: what is never corrupted, and what corrupts."""

from __future__ import annotations

import dataclasses

from encoders.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How many ids there are, and which of them stand for no text.

    Attributes:
      size: ids of the tokenizer go from 0 to size - 1; a model's table may have more rows.
      pad_id, unk_id, cls_id, sep_id, mask_id: padding, an unknown word, the beginning and the end
        of a text, and a hidden token; RoBERTa spells cls and sep as <s> and </s>.
      others: further special ids, such as BERT's unused ones.
    """

    size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        wrong = [i for i in self.special_ids if not 0 <= i < self.size]
        if wrong:
            raise ConfigError(
                f"preprocessing.vocabulary: special id {wrong[0]} is not among the {self.size} ids."
            )

    @property
    def special_ids(self) -> tuple[int, ...]:
        """All special ids, sorted."""
        named = (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)
        return tuple(sorted({*named, *self.others}))
