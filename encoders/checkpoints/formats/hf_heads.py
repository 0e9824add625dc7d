"""Heads of transformers' text models: what a file holds beside the encoder, in and out.

A class of transformers with heads is one row (`Heads`): how its file is told from others, which
objective it is here, and rules for its tensors. A family's module has a tuple of rows, those with
more heads first, and calls `find` and `imported` when it reads, `with_heads` when it writes.
`masked_language`, `replaced_token` and `ranking` make rows from the names that a family has;
another objective makes its own. Names of tensors are those in the file: a class with heads has them
beside the encoder's, which stand under a prefix of the family.

Tying. A tied file may hold a copy of the word table as the decoder's weight, and its bias under two
names: it is one vector, added once. An untied file of transformers 5 holds two biases, of which
only the decoder's is used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    Tensors,
    dump_tensors,
    linear,
    load_tensors,
    norm,
    vector,
)
from encoders.errors import CheckpointError

Fields = Mapping[str, Any]

# Objectives that train the heads of another one.
_ALIKE = {"distilled_language": "masked_language"}


@dataclasses.dataclass(frozen=True)
class Heads:
    """One class of transformers with heads.

    Attributes:
      architecture: its name.
      marks: tensors that files of this class hold and those of later rows do not.
      accepts: (tensors) -> whether a file that has the marks is of this class.
      objective: name of the objective that it is here.
      rules: (fields of the model, section of the objective) -> rules of the heads' tensors; raises
        CheckpointError for a section that it cannot express.
      section: (tensors, config) -> the objective's section, but for its name.
      fits: (section) -> whether an objective of that name is this class, or another row's.
      settings: (section) -> fields of config.json.
      droppable: (section) -> regex -> reason, for tensors that are left out.
      completed: tensors -> the same with what older files do not spell out.
    """

    architecture: str
    marks: tuple[str, ...]
    objective: str
    rules: Callable[[Fields, Fields], list[Rule]]
    section: Callable[[Tensors, Fields], dict[str, Any]] = lambda tensors, config: {}
    fits: Callable[[Fields], bool] = lambda section: True
    settings: Callable[[Fields], dict[str, Any]] = lambda section: {}
    droppable: Callable[[Fields], dict[str, str]] = lambda section: {}
    completed: Callable[[Tensors], Tensors] = lambda tensors: tensors
    accepts: Callable[[Tensors], bool] = lambda tensors: True


def find(rows: Sequence[Heads], tensors: Tensors) -> Heads | None:
    """The row of a file, or None where it has an encoder only, or heads that no row knows."""
    for row in rows:
        if all(mark in tensors for mark in row.marks) and row.accepts(tensors):
            return row
    return None


def choose(rows: Sequence[Heads], section: Fields, where: str) -> Heads:
    """The row that an objective is written as.

    Raises:
      CheckpointError: there is none.
    """
    name = _ALIKE.get(section["name"], section["name"])
    for row in rows:
        if row.objective == name and row.fits(section):
            return row
    known = ", ".join(dict.fromkeys(row.objective for row in rows)) or "none"
    raise CheckpointError(
        f"format 'hf': objective={section['name']!r} cannot be expressed for {where} as it is; "
        f"heads that it has are those of {known}."
    )


def imported(
    tensors: Tensors,
    rules: Sequence[Rule],
    row: Heads | None,
    *,
    model: dict[str, Any],
    config: Fields,
    trunk: str,
    droppable: Fields,
    where: str,
) -> Imported:
    """An encoder, and the heads that its file holds beside it.

    Args:
      tensors: of the file, the encoder's without their prefix.
      rules: of the encoder.
      row: of the heads; None where there are none to read.
      model: config section of the encoder.
      config: config.json.
      trunk: class of the encoder alone.
      droppable: regex -> reason, for tensors that are left out.
      where: names the file in errors.

    Raises:
      CheckpointError: tensors are missing, unknown or of another shape.
    """
    objective, of_heads = None, []
    if row is not None:
        objective = {"name": row.objective, **row.section(tensors, config)}
        of_heads = row.rules(model, objective)
        droppable = {**row.droppable(objective), **droppable}
    tree, dropped = load_tensors(tensors, [*rules, *of_heads], droppable, where)
    names = {path.split("/")[0] for rule in of_heads for path in rule.ours}
    metadata = {
        "format": "hf",
        "architecture": (config.get("architectures") or [trunk])[0],
        "dropped": dropped,
        "no_preprocessing": "it encodes token ids",
    }
    return Imported(
        model,
        {name: value for name, value in tree.items() if name not in names},
        None,
        objective,
        {name: value for name, value in tree.items() if name in names},
        metadata,
    )


def with_heads(
    tensors: dict[str, Any],
    config: dict[str, Any],
    exported: Exported,
    rows: Sequence[Heads],
    *,
    family: str,
    prefix: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and config of an encoder with those of its heads, or as they are without any.

    A discriminator's generator is left out: it would be a model of its own.

    Args:
      tensors, config: of the encoder alone.
      exported: what is written.
      rows: of the family.
      family: its name, for errors.
      prefix: what the encoder's tensors are under in models with heads.

    Raises:
      CheckpointError: the family has no such heads.
    """
    section = exported.objective
    if section is None:
        return tensors, config
    row = choose(rows, section, family)
    rules = row.rules(exported.fields, section)
    params = {k: value for k, value in exported.objective_params.items() if k != "generator"}
    found = {f"{prefix}.{name}": value for name, value in tensors.items()}
    found |= dump_tensors(params, rules, f"Hugging Face {row.architecture}")
    return found, {**config, "architectures": [row.architecture], **row.settings(section)}


# --- vocabulary heads -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class VocabularyNames:
    """What a family calls the parts of its vocabulary head, and how it makes it.

    Attributes:
      dense, norm: the transform; None where the family has none.
      decoder: the scores' matrix and its bias.
      bias: another name of that bias, or None.
      fixed: fields of `VocabularyHead` that are the same for all models of the family, as in `HEAD`
        of our class.
    """

    decoder: str
    dense: str | None = None
    norm: str | None = None
    bias: str | None = None
    fixed: Fields = dataclasses.field(default_factory=dict)

    def is_tied(self, tensors: Tensors, config: Fields) -> bool:
        """Whether scores are products with the word table, whatever matrix the file holds."""
        return config.get("tie_word_embeddings", True) or f"{self.decoder}.weight" not in tensors

    def rules(self, fields: Fields, section: Fields, ours: str = "head") -> list[Rule]:
        """Their head against params[ours], a `VocabularyHead`.

        Raises:
          CheckpointError: an option of section['head'] that the family has not.
        """
        made = {"activation": fields["mlp"], "norm_eps": fields.get("norm_eps"), **self.fixed}
        given = section.get("head") or {}
        for option, value in given.items():
            if option != "tied" and value not in (None, made.get(option, True)):
                raise CheckpointError(
                    f"format 'hf': objective.head.{option}={value!r} cannot be expressed for "
                    f"{fields['name']}: there it is {made.get(option, True)!r}."
                )
        vocab, embedding = fields["vocab_size"], fields.get("embedding_dim") or fields["width"]
        found: list[Rule] = []
        if self.dense is not None:
            bias = made.get("dense_bias", True)
            found += linear(self.dense, f"{ours}/dense", fields["width"], embedding, bias)
            found += norm(self.norm, f"{ours}/norm", embedding)[: 1 + made.get("norm_bias", True)]
        if not tied(section):
            found.append(vector(f"{self.decoder}.weight", f"{ours}/words", (vocab, embedding)))
        if made.get("bias", True):
            found.append(self._bias(f"{ours}/bias", vocab, tied(section)))
        return found

    def _bias(self, ours: str, vocab: int, tied: bool) -> Rule:
        if self.bias is None or tied:
            return vector(self.bias or f"{self.decoder}.bias", ours, (vocab,))
        # transformers 4 has one vector in both places even so; 5 adds the decoder's and ignores the
        # other. The same in both is right for either.
        both = tuple((name, (vocab,)) for name in (f"{self.decoder}.bias", self.bias))
        return Rule(both, (ours,), lambda decoder, _: (decoder,), lambda x: (x, x))

    def completed(self, tensors: Tensors) -> Tensors:
        """With both biases of an untied file, of which transformers 4 stores one."""
        name, bias = f"{self.decoder}.bias", self.bias
        untied = f"{self.decoder}.weight" in tensors
        if untied and bias in tensors and name not in tensors:
            return {**tensors, name: tensors[bias]}
        return tensors

    def copies(self, section: Fields) -> dict[str, str]:
        """Regex -> reason, for what a tied file may hold twice."""
        if not tied(section):
            return {}
        found = {re.escape(f"{self.decoder}.weight"): "tied: the word table again"}
        if self.bias is not None:
            found[re.escape(f"{self.decoder}.bias")] = "tied: the other bias again"
        return found


def tied(section: Fields) -> bool:
    """Whether the vocabulary head of an objective's section is tied: None and no word of it are."""
    return (section.get("head") or {}).get("tied") is not False


def masked_language(
    architecture: str, names: VocabularyNames, pair: tuple[str, str] | None = None
) -> Heads:
    """A masked-token model.

    Args:
      architecture: its name.
      names: of its vocabulary head.
      pair: the pair task, 'nsp' or 'sop', and the name of its linear layer on the pooled vector.
    """
    mark = names.dense or names.decoder
    marks = (f"{mark}.weight", *((f"{pair[1]}.weight",) if pair else ()))

    def section(tensors: Tensors, config: Fields) -> dict[str, Any]:
        found = {} if names.is_tied(tensors, config) else {"head": {"tied": False}}
        return {**found, "pair": pair[0]} if pair else found

    def rules(fields: Fields, section: Fields) -> list[Rule]:
        found = names.rules(fields, section)
        return found + (linear(pair[1], "pair_head/scores", fields["width"], 2) if pair else [])

    return Heads(
        architecture,
        marks,
        "masked_language",
        rules,
        section,
        fits=lambda section: section.get("pair") == (pair[0] if pair else None),
        settings=lambda section: {"tie_word_embeddings": tied(section)},
        droppable=names.copies,
        completed=names.completed,
    )


# --- heads on every token -------------------------------------------------------------------------


def replaced_token(architecture: str, dense: str, score: str) -> Heads:
    """A discriminator of original and replaced tokens: two linear layers, params['head']."""

    def rules(fields: Fields, section: Fields) -> list[Rule]:
        width = fields["width"]
        return [*linear(dense, "head/dense", width, width), *linear(score, "head/score", width, 1)]

    return Heads(architecture, (f"{dense}.weight", f"{score}.weight"), "replaced_token", rules)


# --- heads on the pooled vector -------------------------------------------------------------------


def ranking(architecture: str, scores: str, dense: str | None = None) -> Heads:
    """A cross-encoder: a classifier with one output, params['head'].

    Args:
      architecture: its name.
      scores: its linear layer.
      dense: of a family without a pooler, the tanh layer before, which is one: read as the
        encoder's own, `pooler.dense`, and not written back.
    """

    def completed(tensors: Tensors) -> Tensors:
        if dense is None:
            return tensors
        kept = {name: x for name, x in tensors.items() if not name.startswith(f"{dense}.")}
        moved = {f"pooler.dense.{part}": tensors[f"{dense}.{part}"] for part in ("weight", "bias")}
        return {**kept, **moved}

    marks = (f"{scores}.weight", *((f"{dense}.weight",) if dense else ()))
    return Heads(
        architecture,
        marks,
        "ranking",
        lambda fields, section: linear(scores, "head", fields["width"], 1),
        fits=lambda section: dense is None and section.get("pooling") is None,
        settings=lambda section: {"num_labels": 1, "id2label": {"0": "LABEL_0"}},
        completed=completed,
        accepts=lambda tensors: tensors[f"{scores}.weight"].shape[0] == 1,
    )
