"""Transcribes clips of speech: python -m tools.transcribe --model M --input CLIPS

M is a run that was trained with objective ctc, or a directory of wav2vec 2.0's family with a head
and a vocabulary; CLIPS a folder of sound files, a table of them, a prepared data set, or one file.
Prints a line for each clip, in their order: where it is, a tab, and its text, the best character of
each frame. With --language-model an n-gram model in an ARPA file chooses among its words.

Clips of another rate are resampled, and several channels averaged. Those that cannot be read, or
are longer than --max-seconds, or than the model hears, are named and counted on stderr; the others
go on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from encoders.errors import CheckpointError, ConfigError, DataError, exit_cleanly
from launch.flags import Parser
from tools.clips import Clips, limit_seconds, longest, open_clips, over_clips
from tools.evaluate import Subject, load_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each clip."""
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", required=True, help="a run, a checkpoint, or other weights")
    parser.add_argument("--input", required=True, help="clips")
    parser.add_argument("--split", default="test", help="of prepared clips")
    parser.add_argument("--batch-size", type=int, default=16, help="clips per step")
    limit_seconds(parser)
    parser.add_argument("--language-model", help="an ARPA file")
    flags = parser.parse(arguments)
    if flags.batch_size < 1:
        raise ConfigError(f"--batch-size: expected a number from 1, got {flags.batch_size}.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    subject, function, read = _load(flags.model, flags.language_model)
    clips = open_clips(
        flags.input,
        flags.split,
        subject.preprocessing,
        least=subject.encoder.receptive_field,
        most=longest(subject.encoder, flags.max_seconds, subject.preprocessing.sample_rate),
        flag="--input",
    )
    done = _transcribe(function, subject.variables, clips, flags, read)
    for where in clips.corrupt:
        print(f"left out: {where}", file=sys.stderr)
    if not done:
        raise DataError(f"--input {flags.input}: none of {len(clips)} clips could be read.")
    if clips.corrupt:
        print(f"{len(clips.corrupt)} of {len(clips)} clips left out", file=sys.stderr)
    return 0


def _transcribe(
    function: Callable,
    variables: Any,
    clips: Clips,
    flags: argparse.Namespace,
    read: Callable[[Any], list[str]],
) -> int:
    """Prints clips in their order, and returns how many there were."""
    texts: dict[int, str] = {}
    last = 0  # clips up to here are printed
    for batch, result in over_clips(function, variables, clips, flags.batch_size):
        if batch.first > last:  # all before it have come
            _print(clips, texts, range(last, batch.first))
            last = batch.first
        texts.update(zip(batch.rows.tolist(), read(result), strict=True))
    _print(clips, texts, range(last, len(clips)))
    return len(texts)


def _print(clips: Clips, texts: dict[int, str], rows: range) -> None:
    for row in rows:
        if row in texts:
            print(f"{clips.source.describe(row)}\t{texts[row]}", flush=True)


def _load(path: str, language_model: str | None) -> tuple[Subject, Callable, Callable]:
    """What transcribes; (variables, batch) -> arrays; and arrays -> texts.

    Raises:
      CheckpointError: the weights have no head for characters.
    """
    from encoders.evaluation.beam_search import Beam, BeamSearch
    from encoders.evaluation.transcription import greedy, text_of, transcribes

    subject = load_model(path)
    if not transcribes(subject.objective):
        raise CheckpointError(
            f"--model {path}: cannot transcribe: it has no head for characters, as the objective "
            "ctc trains."
        )
    objective, characters = subject.objective, subject.preprocessing.opened
    search = None
    if language_model is not None:
        search = BeamSearch(Beam(language_model=language_model), characters, "--language-model")

    def function(variables: Any, batch: dict[str, Any]) -> Any:
        logits, mask = objective.apply(variables, batch, method="logits")
        return (logits, mask) if search else greedy(logits, mask, characters.blank)

    def read(found: Any) -> list[str]:
        if search is None:
            return [text_of(ids, characters) for ids in found]
        return [search(logits[real]) for logits, real in zip(*found, strict=True)]

    return subject, function, read


if __name__ == "__main__":
    exit_cleanly(main)
