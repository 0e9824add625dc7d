"""Writes tests/golden/xlnet: tiny XLNets of transformers, and the sizes of the published ones.

    python -m tools.golden.write_xlnet        # needs the extra 'parity'

Every case is a directory that transformers saved, and expected.npz, from PyTorch on the CPU in
float32: outputs of a plain encoder, also of rows that run backwards and of a call with a memory; or
of a model that predicts tokens, for a given order, with its loss; hidden states, of both streams
where there are two; and gradients. parameters.json counts the parameters of the encoder.
"""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import torch
import transformers

from tools.golden.write_text import inputs, randomize

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "xlnet"

_TINY = {
    "d_model": 12,
    "n_layer": 2,
    "n_head": 3,
    "d_inner": 20,
    "vocab_size": 23,
    "mem_len": None,
    "summary_type": "first",
}
# name -> (class, fields, whether there are token types)
CASES = {
    "plain": ("XLNetModel", {**_TINY, "layer_norm_eps": 1e-3}, True),
    "tied": ("XLNetLMHeadModel", {**_TINY, "clamp_len": 3, "ff_activation": "gelu_new"}, True),
    "untied": (
        "XLNetLMHeadModel",
        {**_TINY, "tie_word_embeddings": False, "ff_activation": "relu"},
        False,
    ),
}
PUBLISHED = {
    "base": {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072},
    "large": {},
}


def write_case(name: str) -> None:
    """Runs a network, differentiates it, and saves all."""
    kind, fields, typed = CASES[name]
    config = transformers.XLNetConfig(**fields)
    model = getattr(transformers, kind)(config).eval()
    randomize(model, seed=len(name))
    model.save_pretrained(DIRECTORY / name)
    (DIRECTORY / name / "generation_config.json").unlink(missing_ok=True)
    given = inputs(config)
    generator = torch.Generator().manual_seed(4)
    if typed:
        given["token_type_ids"] = torch.randint(0, 3, (4, 7), generator=generator)
    found = predicting(model, given) if "LMHead" in kind else encoding(model, given)
    arrays = {f"inputs/{key}": value for key, value in given.items()} | found
    gradients = {k: v.grad for k, v in model.named_parameters() if v.grad is not None}
    arrays |= {f"gradients/{key}": value for key, value in gradients.items()}
    arrays = {key: value.detach().numpy() for key, value in arrays.items()}
    np.savez_compressed(DIRECTORY / name / "expected.npz", **arrays)
    print(name, sum(file.stat().st_size for file in (DIRECTORY / name).iterdir()), "bytes")


def encoding(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs, and gradients of a random linear function of them."""
    generator = torch.Generator().manual_seed(7)
    out = model(**given, output_hidden_states=True, use_mems=True)
    cotangent = torch.randn(out.last_hidden_state.shape, generator=generator) / 10
    (out.last_hidden_state * cotangent).sum().backward()
    found = {
        "outputs/tokens": out.last_hidden_state,
        "outputs/hidden": torch.stack(out.hidden_states[1:]),
        "cotangent": cotangent,
        # The last four tokens of every layer, before the same tokens again.
        "outputs/after_memory": model(**given, mems=[x[-4:] for x in out.mems]).last_hidden_state,
    }
    model.bi_data = True  # the last two of the four rows run backwards
    found["outputs/half_backward"] = model(**given).last_hidden_state
    return found


def predicting(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores of three tokens of each row in a random order, and gradients of their loss."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.stack([torch.randperm(7, generator=generator)[:3] for _ in range(4)])
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(4)])
    hidden = torch.nn.functional.one_hot(targets, 7).sum(1) == 1
    order = torch.where(hidden, order, -1)
    unseen = hidden[:, None] & (order[:, :, None] <= order[:, None])
    labels = given["input_ids"].gather(1, targets)
    # Padding is not predicted; nor are targets that see nothing, which transformers gives the mean
    # of all values.
    real = given["attention_mask"] == 1
    left_out = ~((~unseen & real[:, None]).any(2) & real).gather(1, targets)
    labels[left_out] = -100
    out = model(
        **given,
        perm_mask=unseen.float(),
        target_mapping=torch.nn.functional.one_hot(targets, 7).float(),
        labels=labels,
        output_hidden_states=True,
    )
    out.loss.backward()
    return {
        "inputs/targets": targets,
        "inputs/visible": ~unseen,
        "inputs/weights": (~left_out).float(),
        "inputs/labels": labels,
        "outputs/scores": out.logits,
        "outputs/loss": out.loss,
        "outputs/hidden": torch.stack(out.hidden_states[2::2]),
        "outputs/query": torch.stack(out.hidden_states[3::2]),
    }


def parameters() -> dict[str, int]:
    """variant -> parameters of the encoder."""
    counts = {}
    for variant, fields in PUBLISHED.items():
        with torch.device("meta"):
            model = transformers.XLNetModel(transformers.XLNetConfig(**fields))
        counts[variant] = sum(value.numel() for value in model.parameters())
    return counts


def main() -> None:
    """Writes every case anew."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    for name in CASES:
        write_case(name)
    text = json.dumps(parameters(), indent=2) + "\n"
    (DIRECTORY / "parameters.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
