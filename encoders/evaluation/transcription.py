"""Error rates of transcripts, and how they are read off the frames of CTC."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.characters import Characters
from encoders.data.sources.buckets import by_length
from encoders.errors import ConfigError, DataError
from encoders.evaluation.base import Evaluator, batches, on_mesh, place
from encoders.evaluation.beam_search import Beam, BeamSearch


def greedy(logits: jax.Array, mask: jax.Array, blank: int) -> jax.Array:
    """The best token of every frame, repetitions and blanks left out (Graves et al., 2006).

    Args:
      logits: [B, T, V].
      mask: [B, T] bool, True where a frame is real.
      blank: the id of CTC's blank.

    Returns:
      int32 ids [B, T], -1 behind the last.
    """
    best = logits.argmax(-1).astype(jnp.int32)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    kept = (best != before) & (best != blank) & mask
    places = jnp.where(kept, kept.cumsum(1) - 1, best.shape[1])
    rows = jnp.arange(len(best))[:, None]
    return jnp.full_like(best, -1).at[rows, places].set(best, mode="drop")


def error_rates(references: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """'wer' and 'cer': words and characters to substitute, delete and insert, over those there are.

    Of all texts together, by jiwer; spaces count as characters.
    """
    import jiwer

    references, found = list(references), list(found)
    return {
        "wer": float(jiwer.wer(references, found)),
        "cer": float(jiwer.cer(references, found)),
    }


@dataclasses.dataclass(kw_only=True)
class Transcription(Evaluator):
    """Word and character error rate on `test` of an objective with CTC's `logits`.

    Clips are padded to the lengths of `preprocessing.bucket_samples`, where there are some.
    Transcripts are compared as the vocabulary spells them, such as in capitals. Metrics: 'wer' and
    'cer' of greedy decoding; with a beam 'beam_wer' and 'beam_cer' as well; 'left_out', how many
    clips are in none of them, as they or their transcripts cannot be used.

    Attributes:
      beam: a search with a language model; None for none.
    """

    subject: ClassVar[Literal["encoder", "objective"]] = "objective"

    beam: Beam | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        characters = getattr(self.preprocessing, "characters", None)
        if characters is None:
            raise ConfigError(
                f"evaluators.{self.label}: needs transcripts; set preprocessing.characters, such "
                "as to 'letters'."
            )
        self._parts = by_length(self.test_source, self.preprocessing, self.batch_size)
        self._search = None
        if self.beam is not None:
            where = f"evaluators.{self.label}.beam"
            self._search = BeamSearch(self.beam, self.preprocessing.opened, where)
        self._compiled: tuple[nn.Module, Any] | None = None

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if not transcribes(module):
            raise ConfigError(
                f"evaluators.{self.label}: {type(module).__name__} does not transcribe; this "
                "evaluator needs an objective such as ctc."
            )
        if self._compiled is None or self._compiled[0] != module:
            function = on_mesh(
                lambda variables, batch: self._read(module, variables, batch),
                self.preprocessing, self.mesh, self.compute_dtype,
            )  # fmt: skip
            self._compiled = module, function
        variables = place(variables, self.mesh)
        references, found, searched = [], [], []
        characters: Characters = self.preprocessing.opened
        pending: collections.deque = collections.deque()

        def collect() -> None:
            batch = jax.device_get(pending.popleft())
            for row in np.flatnonzero(batch["valid"]):
                targets = batch["targets"][row, : batch["target_length"][row]]
                references.append(characters.decode(targets, collapse=False))
                found.append(text_of(batch["ids"][row], characters))
                if self._search is not None:
                    frames = int(batch["mask"][row].sum())
                    searched.append(self._search(batch["logits"][row, :frames]))

        for part in self._parts:
            for batch in batches(part, self.preprocessing, self.batch_size, self.mesh):
                pending.append(self._compiled[1](variables, batch))
                if len(pending) > 2:  # the device works on the next ones meanwhile
                    collect()
        while pending:
            collect()
        rates = error_rates(references, found)
        rates["left_out"] = float(len(self.test_source) - len(references))
        if self._search is not None:
            beam = error_rates(references, searched)
            rates.update({f"beam_{name}": rate for name, rate in beam.items()})
        return rates

    def _read(
        self, module: nn.Module, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        if "targets" not in batch:
            raise DataError(f"evaluators.{self.label}.test: its examples have no transcripts.")
        logits, mask = module.apply(variables, batch, method="logits")
        kept = {name: batch[name] for name in ("targets", "target_length", "valid")}
        kept["ids"] = greedy(logits, mask, self.preprocessing.opened.blank)
        return kept if self._search is None else {**kept, "logits": logits, "mask": mask}


def transcribes(module: Any) -> bool:
    """Whether an objective scores characters of a vocabulary frame by frame."""
    return callable(getattr(module, "logits", None)) and hasattr(module, "characters")


def text_of(ids: np.ndarray, characters: Characters) -> str:
    """The text of ids [T] as `greedy` gives them."""
    return characters.decode(ids[ids >= 0], collapse=False)
