"""Writes tests/golden/deberta.npz: what DeBERTa-v3 has beyond the encoder that transformers runs.

    python -m tools.golden.write_deberta        # needs the extra 'parity'

The buckets of distances at the published sizes; scores, loss and gradients of masked-token models;
and the enhanced mask decoder: transformers has the layer that takes queries of its own, and here it
is applied as the paper says. Weights are those of `write_text`.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers
from transformers.models.deberta_v2 import modeling_deberta_v2

from tools.golden.write_text import DIRECTORY, inputs


def buckets() -> dict[str, np.ndarray]:
    """Bucket of each distance from -700 to 700: {'buckets/<number>_<max_distance>': int32}."""
    distance = torch.arange(-700, 701)
    found = {}
    for number, furthest in ((256, 512), (32, 512), (4, 11), (6, 9)):
        values = modeling_deberta_v2.make_log_bucket_position(distance, number, furthest)
        found[f"buckets/{number}_{furthest}"] = values.numpy().astype(np.int32)
    return found


def mask_decoder() -> dict[str, np.ndarray]:
    """Tokens of the mask decoder, and gradients of a random linear function of them."""
    model = transformers.DebertaV2Model.from_pretrained(DIRECTORY / "deberta").eval()
    given = inputs(model.config)
    mask, encoder = given["attention_mask"], model.encoder
    generator = torch.Generator().manual_seed(9)
    shape = (model.config.max_position_embeddings, model.config.hidden_size)
    positions = (0.5 * torch.randn(shape, generator=generator)).requires_grad_()
    hidden = model(**given, output_hidden_states=True).hidden_states[-2]
    query = hidden + positions[: hidden.shape[1]]
    for _ in range(2):
        query, _ = encoder.layer[-1](
            hidden,
            encoder.get_attention_mask(mask),
            query_states=query,
            relative_pos=encoder.get_rel_pos(hidden),
            rel_embeddings=encoder.get_rel_embedding(),
        )
    cotangent = (
        torch.randn(query.shape, generator=generator) / 10 * (mask.sum(1) > 0)[:, None, None]
    )
    (query * cotangent).sum().backward()
    found = {"positions": positions, "tokens": query, "cotangent": cotangent}
    found |= {f"inputs/{key}": value for key, value in given.items()}
    found["gradients/embeddings.position_embeddings.weight"] = positions.grad
    for name, value in model.named_parameters():
        found[f"gradients/{name}"] = value.grad
    return {f"mask_decoder/{key}": value.detach().numpy() for key, value in found.items()}


def masked_language(name: str) -> dict[str, np.ndarray]:
    """Scores of all tokens, the summed loss of labels at every other one, and its gradients."""
    model = transformers.DebertaV2ForMaskedLM.from_pretrained(DIRECTORY / name).eval()
    given = inputs(model.config)
    generator = torch.Generator().manual_seed(8)
    shape = given["input_ids"].shape
    labels = torch.randint(5, model.config.vocab_size, shape, generator=generator)
    hidden = (torch.arange(shape[1]) % 2 == 0) & (given["attention_mask"] == 1)
    logits = model(**given).logits
    torch.nn.functional.cross_entropy(logits[hidden], labels[hidden], reduction="sum").backward()
    found = {"logits": logits, "labels": labels, "hidden": hidden}
    found |= {f"inputs/{key}": value for key, value in given.items()}
    for key, value in model.named_parameters():
        if value.grad is not None:
            found[f"gradients/{key}"] = value.grad
    return {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}


def main() -> None:
    """Writes the file anew."""
    found = {**buckets(), **mask_decoder()}
    for name in ("deberta_mlm", "deberta_untied"):
        found |= masked_language(name)
    np.savez_compressed(DIRECTORY.parent / "deberta.npz", **found)


if __name__ == "__main__":
    main()
