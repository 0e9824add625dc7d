"""Writes tests/golden/code: tiny encoders of code, as RoBERTas of transformers with masks of 3-d.

    python -m tools.golden.write_code        # needs the extra 'parity'

GraphCodeBERT and UniXcoder are RoBERTas that are given a mask, positions and, for nodes, vectors in
place of words. Here those are made by loops over the definitions in the papers (arXiv 2009.08366,
section 4.2; 2203.03850, section 3.1), apart from how the library makes them. A case is a directory
that transformers saved, and expected.npz.
"""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import torch
import transformers

from tools.golden.write_text import randomize

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "code"

_FIELDS = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 23,
    "max_position_embeddings": 14,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
_TOKENS, _NODES = 11, 4


def graph() -> dict[str, np.ndarray]:
    """Two rows [CLS] text [SEP] code [SEP] nodes, one with padding and two nodes only."""
    ids = np.random.default_rng(0).integers(5, 23, (2, _TOKENS + _NODES))
    ids[:, _TOKENS:] = 3  # the unknown word, which no node's vector is
    segments = np.ones_like(ids)
    sees_all = np.zeros(ids.shape, bool)
    for row, (special, end) in enumerate((((0, 3, 10), 11), ((0, 2, 6), 7))):
        ids[row, special[0]], ids[row, special[1]], ids[row, special[2]] = 0, 2, 2
        sees_all[row, list(special)] = True
        ids[row, end:_TOKENS], segments[row, end:_TOKENS] = 1, 0
    ids[1, _TOKENS + 2 :], segments[1, _TOKENS + 2 :] = 1, 0
    spans, sources = np.zeros((2, _NODES, 2), int), np.zeros((2, _NODES, _NODES), bool)
    spans[0], spans[1, :2] = [(4, 5), (5, 7), (8, 9), (9, 10)], [(3, 4), (4, 6)]
    sources[0, 1, 0] = sources[0, 3, 1] = sources[0, 3, 2] = sources[0, 2, 3] = True
    sources[1, 1, 0] = True
    return {
        "ids": ids,
        "segments": segments,
        "sees_all": sees_all,
        "node_spans": spans,
        "node_sources": sources,
    }


def may_attend(given: dict[str, np.ndarray], row: int, query: int, key: int) -> bool:
    """Whether a token or node attends to another, as section 4.2 says."""
    if not (given["segments"][row, query] and given["segments"][row, key]):
        return False
    if given["sees_all"][row, query] or max(query, key) < _TOKENS:
        return True
    spans = given["node_spans"][row]
    if min(query, key) >= _TOKENS:
        return query == key or given["node_sources"][row, query - _TOKENS, key - _TOKENS]
    node, token = max(query, key) - _TOKENS, min(query, key)
    return spans[node, 0] <= token < spans[node, 1]


def run(name: str, model: torch.nn.Module, given: dict, theirs: dict) -> None:
    """Runs the network, differentiates a random linear function of its output, saves all."""
    out = model(**theirs, output_hidden_states=True)
    generator = torch.Generator().manual_seed(7)
    cotangent = torch.randn(out.last_hidden_state.shape, generator=generator) / 10
    cotangent[given["segments"] == 0] = 0
    (out.last_hidden_state * cotangent).sum().backward()
    arrays = {f"inputs/{key}": value for key, value in given.items()}
    arrays |= {
        "outputs/tokens": out.last_hidden_state.detach().numpy(),
        "outputs/hidden": torch.stack(out.hidden_states[1:]).detach().numpy(),
        "cotangents/tokens": cotangent.numpy(),
    }
    for key, value in model.named_parameters():
        if value.grad is not None:
            arrays[f"gradients/{key}"] = value.grad.numpy()
    np.savez_compressed(DIRECTORY / name / "expected.npz", **arrays)
    print(name, sum(file.stat().st_size for file in (DIRECTORY / name).iterdir()), "bytes")


def start(name: str, seed: int) -> torch.nn.Module:
    """A random RoBERTa, saved."""
    config = transformers.RobertaConfig(**_FIELDS)
    model = transformers.RobertaModel._from_config(config, attn_implementation="eager").eval()
    randomize(model, seed)
    model.save_pretrained(DIRECTORY / name)
    return model


def additive(mask: np.ndarray) -> torch.Tensor:
    """[B, T, T] bool -> [B, 1, T, T], what is added to the scores."""
    lowest = torch.finfo(torch.float32).min
    return torch.where(torch.tensor(mask)[:, None], 0.0, lowest)


def write_graphcodebert() -> None:
    """The word vector of a node is the mean of those of its tokens; its position is 0."""
    model, given = start("graphcodebert", 1), graph()
    length = _TOKENS + _NODES
    mask = np.array(
        [
            [[may_attend(given, row, q, k) for k in range(length)] for q in range(length)]
            for row in range(2)
        ]
    )
    words = model.embeddings.word_embeddings(torch.tensor(given["ids"]))
    rows, positions = [], np.zeros_like(given["ids"])
    for row in range(2):
        vectors = list(words[row, :_TOKENS])
        for first, last in given["node_spans"][row]:
            real = words[row, first:last].mean(0) if first < last else torch.zeros(12)
            vectors.append(real)
        rows.append(torch.stack(vectors))
        real = int(given["segments"][row, :_TOKENS].sum())
        positions[row, :real] = 2 + np.arange(real)
        positions[row, real:_TOKENS] = 1
    theirs = {
        "inputs_embeds": torch.stack(rows),
        "position_ids": torch.tensor(positions),
        "attention_mask": additive(mask),
    }
    run("graphcodebert", model, given, theirs)


def write_unixcoder() -> None:
    """Rows that are encoder, decoder, and both, padded behind."""
    model, rng = start("unixcoder", 2), np.random.default_rng(3)
    real, prefix, length = (9, 6, 7), np.array((9, 0, 4)), 9
    ids, segments = rng.integers(5, 23, (3, length)), np.zeros((3, length), int)
    mask, positions = np.zeros((3, length, length), bool), np.ones((3, length), int)
    for row in range(3):
        ids[row, real[row] :], segments[row, : real[row]] = 1, 1
        positions[row, : real[row]] = 2 + np.arange(real[row])
        for query in range(real[row]):
            for key in range(real[row]):
                mask[row, query, key] = key <= query or key < prefix[row]
    theirs = {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "attention_mask": additive(mask),
    }
    run("unixcoder", model, {"ids": ids, "segments": segments, "prefix": prefix}, theirs)


def main() -> None:
    """Writes all cases anew."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    write_graphcodebert()
    write_unixcoder()


if __name__ == "__main__":
    main()
