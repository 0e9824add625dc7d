"""Converts weights: python -m tools.convert SRC DST --to FORMAT.

SRC is a run, one of its checkpoints, a directory of transformers, timm or open_clip, or what this
tool wrote. FORMAT is hf, timm, open_clip, sentence-transformers or native.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from encoders.errors import exit_cleanly
from launch.flags import Parser

_FORMATS = ("hf", "sentence-transformers", "timm", "open_clip", "native")


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts, and says what was read, left out and written."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="SRC", help="where the weights are")
    parser.add_argument("destination", metavar="DST", help="directory to write; must not exist")
    parser.add_argument("--to", required=True, choices=_FORMATS, help="format")
    parser.add_argument(
        "--heads", action="store_true", help="also write the classifier or decoder, if there is one"
    )
    parser.add_argument(
        "--weights",
        default="auto",
        choices=("auto", "ema", "params"),
        help="of a run: the moving average, the trained parameters, or the average if there is one",
    )
    flags = parser.parse(arguments)
    # Imported late: a misspelt flag should not wait for jax.
    import jax

    import encoders

    encoder = encoders.load(flags.source, weights=flags.weights)
    metadata = encoder.metadata
    size = sum(leaf.size for leaf in jax.tree.leaves(encoder.variables["params"]))
    details = [metadata.get(key) for key in ("format", "architecture", "weights")]
    details += [f"step {metadata['step']}" if "step" in metadata else None]
    details += [f"{size:,} parameters"]
    print(f"read {flags.source}: {', '.join(filter(None, details))}")
    reasons = collections.defaultdict(list)
    for name, reason in metadata.get("dropped", {}).items():
        reasons[reason].append(name)
    for reason, names in reasons.items():
        print(f"left out on reading ({reason}): {', '.join(names)}")
    encoders.save(encoder, flags.destination, format=flags.to, heads=flags.heads)
    if encoder.heads and not flags.heads:
        print(f"left out on writing: {', '.join(encoder.heads)} (--heads keeps them)")
    if encoder.preprocessing is None:
        print(f"no preprocessing: {metadata.get('no_preprocessing') or 'the source has none'}")
    print(f"wrote {flags.destination}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
