"""Writes tests/golden/modernbert: tiny ModernBERTs of transformers, as `write_text` does others.

    python -m tools.golden.write_modernbert        # needs the extra 'parity'

Lengths are odd and reach beyond the window; the scores of masked-token models are kept as well.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers

from tools.golden.write_text import randomize

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "modernbert"

_TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 23,
    "max_position_embeddings": 16,
    "local_attention": 4,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
}
# name -> (class, fields)
CASES = {
    "plain": ("ModernBertModel", _TINY),
    "masked": ("ModernBertForMaskedLM", {**_TINY, "num_hidden_layers": 2}),
    "untied": (
        "ModernBertForMaskedLM",
        {**_TINY, "num_hidden_layers": 2, "tie_word_embeddings": False},
    ),
    "biases": (
        "ModernBertModel",
        {
            **_TINY,
            "num_hidden_layers": 3,
            "local_attention": 2,
            "global_attn_every_n_layers": 2,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_activation": "silu",
            "norm_eps": 1e-3,
        },
    ),
}


def write_case(name: str) -> None:
    """Runs a network, differentiates a random linear function of its output, and saves all."""
    kind, fields = CASES[name]
    config = transformers.ModernBertConfig(**fields)
    model = getattr(transformers, kind)._from_config(config, attn_implementation="eager").eval()
    randomize(model, seed=len(name))
    model.save_pretrained(DIRECTORY / name)
    generator = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1] * 9, [0, 0] + [1] * 7, [1] * 6 + [0] * 3, [0] * 9])
    ids = torch.randint(5, 23, mask.shape, generator=generator)
    ids[mask == 0] = config.pad_token_id
    given = {"input_ids": ids, "attention_mask": mask}
    trunk = model.base_model
    layers: list[torch.Tensor] = []
    for layer in trunk.layers:
        layer.register_forward_hook(lambda module, inputs, output: layers.append(output))
    out = model(**given)
    output = out.logits if "logits" in out else out.last_hidden_state
    cotangent = torch.randn(output.shape, generator=generator) / 10
    # Padding far from any text may see nothing, and then gradients pass through transformers'
    # scores, which are no more than a number added to them.
    cotangent[mask == 0] = 0
    (output * cotangent).sum().backward()
    arrays = {
        **given,
        "output": output,
        "cotangent": cotangent,
        "tokens": trunk.final_norm(layers[-1]),
        "hidden": torch.stack(layers),
        **{f"gradients/{k}": v.grad for k, v in model.named_parameters() if v.grad is not None},
    }
    arrays = {name: value.detach().numpy() for name, value in arrays.items()}
    np.savez_compressed(DIRECTORY / name / "expected.npz", **arrays)


def main() -> None:
    """Writes every case anew."""
    for name in CASES:
        write_case(name)


if __name__ == "__main__":
    main()
