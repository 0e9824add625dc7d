"""Nearest texts or images of a corpus, or its most similar pairs, by the vectors of an encoder.

    python -m tools.search --model M --corpus docs.jsonl --query "..." [--rerank C] [--top 10]
    python -m tools.search --model M --corpus docs.jsonl --pairs [--time-cross-encoder C]
    python -m tools.search --model M --corpus images/ --query "a smiling cat" [--sheet found.png]
    python -m tools.search --model M --corpus captions.txt --query photo.jpg

Every text is compared with every other: nothing is approximate, and the N x N similarities never
exist whole. --vectors keeps the corpus's vectors in a file for the next search. --rerank reads the
best --candidates again, each together with the query, with a cross-encoder (an encoder with the
head of the objective 'ranking'). --time-cross-encoder times what vectors save: a sample of pairs is
read by a cross-encoder, and its time multiplied by how many pairs there are.

With two towers (CLIP, SigLIP) queries and corpus are texts or images, either finds either, and of
images found a contact sheet is drawn; a query is an image where it is the name of an image file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from encoders.errors import CheckpointError, ConfigError, DataError, StorageError, exit_cleanly
from launch.flags import Parser
from tools import search_images
from tools.texts import Texts, read_texts, report_corrupt

_WIDTH = 72  # characters of a text in a table
_PAPER = "65 hours against 5 seconds, 46,800 times (arXiv 1908.10084)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Searches a corpus and prints a table."""
    flags = _parse(arguments)
    images = search_images.holds_images(flags.corpus)
    corpus = None if images else read_texts(flags.corpus, flags.field, "--corpus")
    encoder = _load(flags.model)
    if images or encoder.module.modality == "image_text":
        if encoder.module.modality == "text":
            _refuse(encoder, f"--model {flags.model}", "images")
        found, corrupt = search_images.search(encoder, flags)
        what = "image" if images else "text"
        return _finish({"corpus": flags.corpus, **found}, corrupt, flags, what)
    if encoder.module.modality != "text":
        _refuse(encoder, f"--model {flags.model}", "texts")
    cross = flags.rerank or flags.time_cross_encoder
    if cross is not None:
        cross = _load_text(cross, "--rerank" if flags.rerank else "--time-cross-encoder")
    began = time.monotonic()
    vectors = _corpus_vectors(encoder, corpus, flags)
    embedded = time.monotonic() - began
    if flags.pairs:
        found = _pairs(corpus, vectors, cross, flags)
    else:
        found = _queries(encoder, corpus, vectors, cross, flags)
    seconds = time.monotonic() - began
    result = {"corpus": flags.corpus, "texts": len(corpus.texts), **found}
    if flags.time_cross_encoder is not None:
        result["timing"] = _time(cross, corpus, flags, embedded, seconds)
    return _finish(result, corpus.corrupt, flags)


def _finish(
    result: dict[str, Any], corrupt: Sequence[str], flags: argparse.Namespace, what: str = "text"
) -> int:
    _print(result)
    report_corrupt(corrupt, what)
    if flags.output is not None:
        _write(pathlib.Path(flags.output), result)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="a run, a checkpoint, or other weights")
    parser.add_argument(
        "--corpus", required=True, help="txt, jsonl, csv, tsv or parquet; images: a folder, tars"
    )
    parser.add_argument("--field", default="text", help="column of the corpus's text")
    parser.add_argument(
        "--query", action="append", help="a text, or an image file; can be repeated"
    )
    parser.add_argument("--split", default="train", help="of a corpus of prepared records")
    parser.add_argument("--sheet", default="search.png", help="the contact sheet of found images")
    parser.add_argument("--pairs", action="store_true", help="the most similar pairs instead")
    parser.add_argument("--top", type=int, default=10, help="how many to show")
    parser.add_argument("--rerank", help="weights of a cross-encoder")
    parser.add_argument("--candidates", type=int, default=100, help="how many it reads again")
    parser.add_argument("--vectors", help="an .npz file that keeps the corpus's vectors")
    parser.add_argument("--output", help="a .json file to write the result to")
    parser.add_argument("--batch-size", type=int, default=64, help="texts per step")
    parser.add_argument("--time-cross-encoder", help="weights of a cross-encoder to time")
    parser.add_argument("--sample-pairs", type=int, default=256, help="pairs to time it with")
    flags = parser.parse(arguments)
    for name in ("top", "candidates", "batch_size", "sample_pairs"):
        if getattr(flags, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: expected a number from 1, got {getattr(flags, name)}.")
    if flags.pairs == bool(flags.query):
        raise ConfigError("--query TEXT or --pairs: expected one of them.")
    if any(not query.strip() for query in flags.query or ()):
        raise ConfigError("--query: is empty.")
    if flags.time_cross_encoder is not None and (not flags.pairs or flags.vectors or flags.rerank):
        raise ConfigError(
            "--time-cross-encoder: times the search for --pairs, without --vectors and --rerank."
        )
    for name, suffix in (("vectors", ".npz"), ("output", ".json"), ("sheet", ".png")):
        value = getattr(flags, name)
        if value is not None and pathlib.Path(value).suffix != suffix:
            raise ConfigError(f"--{name} {value}: expected a name that ends in {suffix}.")
    return flags


def _load(path: str) -> Any:
    import encoders

    return encoders.load(path)


def _load_text(path: str, flag: str) -> Any:
    encoder = _load(path)
    if encoder.module.modality != "text":
        _refuse(encoder, f"{flag} {path}", "texts")
    return encoder


def _refuse(encoder: Any, what: str, kind: str) -> None:
    raise CheckpointError(f"{what}: is a {type(encoder.module).__name__}, which encodes no {kind}.")


# --- vectors --------------------------------------------------------------------------------------


def _corpus_vectors(encoder: Any, corpus: Texts, flags: argparse.Namespace) -> np.ndarray:
    """[N, D] float32, from the file of --vectors if that is there."""
    if flags.vectors is None:
        return encoder.embed(corpus.texts, batch_size=flags.batch_size)
    path, of = pathlib.Path(flags.vectors), _fingerprint(encoder, corpus.texts)
    if path.is_file():
        try:
            with np.load(path) as file:
                vectors, found = file["vectors"], str(file["of"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"--vectors {path}: is no file of this command ({error}).") from error
        if found != of:
            raise DataError(
                f"--vectors {path}: is of other texts or another model; remove it or name another."
            )
        return vectors
    vectors = encoder.embed(corpus.texts, batch_size=flags.batch_size)
    from tools.files import write

    write(path, {"vectors": vectors, "of": np.array(of)}, "--vectors")
    return vectors


def _fingerprint(encoder: Any, texts: Sequence[str]) -> str:
    """Digest of everything that vectors depend on."""
    import jax

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(encoder.variables)):
        digest.update(np.ascontiguousarray(leaf).data)
    said = [repr(encoder.module), encoder.metadata.get("embedding"), encoder.objective, texts]
    if encoder.preprocessing is not None:
        said += [encoder.preprocessing.max_length, encoder.preprocessing.opened.hash]
    digest.update(json.dumps(said, default=str).encode())
    return digest.hexdigest()


# --- what is found --------------------------------------------------------------------------------


def _queries(
    encoder: Any, corpus: Texts, vectors: np.ndarray, cross: Any, flags: argparse.Namespace
) -> dict[str, Any]:
    from encoders.evaluation.features import Labelled
    from encoders.evaluation.knn import neighbours

    count = min(len(vectors), max(flags.candidates, flags.top) if flags.rerank else flags.top)
    bank = Labelled(vectors, np.arange(len(vectors), dtype=np.int32))
    similarity, rows = neighbours(bank, encoder.embed(flags.query), count)
    results = [
        {
            "query": query,
            "found": [
                {"similarity": float(value), **_text(corpus, row)}
                for value, row in zip(values, numbers.tolist(), strict=True)
            ],
        }
        for query, values, numbers in zip(flags.query, similarity, rows, strict=True)
    ]
    for result in results:
        if flags.rerank:
            texts = [entry["text"] for entry in result["found"]]
            _rerank(result["found"], [result["query"]] * count, texts, cross)
        del result["found"][flags.top :]
    return {"results": results}


def _pairs(
    corpus: Texts, vectors: np.ndarray, cross: Any, flags: argparse.Namespace
) -> dict[str, Any]:
    from encoders.evaluation.pairs import most_similar_pairs

    if len(vectors) < 2:
        raise DataError(f"--corpus {flags.corpus}: has one text, and pairs need two.")
    count = max(flags.candidates, flags.top) if flags.rerank else flags.top
    similarity, rows = most_similar_pairs(vectors, count)
    found = [
        {"similarity": float(value), "first": _text(corpus, a), "second": _text(corpus, b)}
        for value, (a, b) in zip(similarity, rows.tolist(), strict=True)
    ]
    if flags.rerank:
        sides = [[entry[side]["text"] for entry in found] for side in ("first", "second")]
        _rerank(found, *sides, cross)
    return {"pairs": found[: flags.top]}


def _text(corpus: Texts, row: int) -> dict[str, Any]:
    return {"name": corpus.names[row], "text": corpus.texts[row]}


def _rerank(
    found: list[dict[str, Any]],
    texts: Sequence[str],
    others: Sequence[str],
    cross: Any,
) -> None:
    """Sorts by the scores of a cross-encoder, and adds them."""
    for entry, score in zip(found, cross.score(texts, others), strict=True):
        entry["score"] = float(score)
    found.sort(key=lambda entry: -entry["score"])


# --- time -----------------------------------------------------------------------------------------


def _time(
    cross: Any, corpus: Texts, flags: argparse.Namespace, embedded: float, seconds: float
) -> dict[str, Any]:
    """Seconds of vectors, compilation included, and of a cross-encoder, compilation left out."""
    # Imported late: a misspelt flag should not wait for jax.
    import jax

    number = len(corpus.texts)
    rng = np.random.default_rng(0)
    first = rng.integers(0, number, flags.sample_pairs)
    second = (first + rng.integers(1, number, flags.sample_pairs)) % number
    texts, others = ([corpus.texts[row] for row in rows] for rows in (first, second))
    cross.embed(texts, others, batch_size=flags.batch_size)  # compiles
    began = time.monotonic()
    cross.embed(texts, others, batch_size=flags.batch_size)
    sample = time.monotonic() - began
    pairs = number * (number - 1) // 2
    extrapolated = sample / flags.sample_pairs * pairs
    return {
        "device": jax.devices()[0].device_kind,
        "texts": number,
        "embed_seconds": embedded,
        "search_seconds": seconds - embedded,
        "seconds": seconds,
        "sample_pairs": flags.sample_pairs,
        "sample_seconds": sample,
        "pairs": pairs,
        "cross_encoder_seconds": extrapolated,
        "ratio": extrapolated / seconds,
    }


# --- out ------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    for entry in result.get("results", ()):
        print(f"query: {entry['query']}")
        for rank, found in enumerate(entry["found"], start=1):
            text = f": {_short(found['text'])}" if "text" in found else ""
            print(f"{rank:4}  {_numbers(found)}  {found['name']}{text}")
    if "sheet" in result:
        print(f"wrote {result['sheet']}")
    for rank, found in enumerate(result.get("pairs", ()), start=1):
        first, second = found["first"], found["second"]
        print(f"{rank:4}  {_numbers(found)}  {first['name']}: {_short(first['text'])}")
        print(" " * (8 + len(_numbers(found))) + f"{second['name']}: {_short(second['text'])}")
    if (timing := result.get("timing")) is not None:
        print(
            f"vectors: the most similar of {timing['pairs']:,} pairs of {timing['texts']:,} texts "
            f"in {timing['seconds']:.1f} s ({timing['embed_seconds']:.1f} s to embed, "
            f"{timing['search_seconds']:.1f} s to search, compilation included)\n"
            f"cross-encoder: {timing['sample_pairs']:,} pairs in {timing['sample_seconds']:.1f} s, "
            f"so all pairs in {timing['cross_encoder_seconds'] / 3600:.1f} h\n"
            f"ratio: {timing['ratio']:,.0f} on {timing['device']}; published: {_PAPER}"
        )


def _numbers(found: dict[str, Any]) -> str:
    score = f"{found['score']:8.3f}  " if "score" in found else ""
    return f"{score}{found['similarity']:6.3f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


def _write(path: pathlib.Path, result: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--output {path}: could not be written ({error}).") from error


if __name__ == "__main__":
    exit_cleanly(main)
