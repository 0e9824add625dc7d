"""Writes tests/golden/conformer.npz: transformers' wav2vec 2.0 Conformer, its blocks alone.

    python -m tools.golden.write_conformer

Needs the extra 'parity'. Weights under their names, what every layer makes of `input`, and the
gradients of sum(output * direction) by the first layer's weights and the input.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as theirs

from tools.golden.inputs import weight

PATH = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "conformer.npz"
WIDTH, LENGTH, LAYERS = 12, 9, 2


def main() -> None:
    """Writes the file."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2ConformerConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        intermediate_size=16,
        hidden_act="swish",
        position_embeddings_type="relative",
        conv_depthwise_kernel_size=5,
        max_source_positions=32,
        attn_implementation="eager",
    )
    layers = torch.nn.ModuleList(
        theirs.Wav2Vec2ConformerEncoderLayer(config) for _ in range(LAYERS)
    )
    layers.eval()
    tensors = {
        name: weight(name, tuple(x.shape))
        for name, x in layers.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    layers.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
    x = torch.tensor(weight("input", (2, LENGTH, WIDTH)), requires_grad=True)
    positions = theirs.Wav2Vec2ConformerRelPositionalEmbedding(config)(x)
    outputs, y = {"input": x}, x
    for index, layer in enumerate(layers):
        y = layer(y, relative_position_embeddings=positions)
        outputs[f"output_{index}"] = y
    (y * torch.tensor(weight("direction", tuple(y.shape)))).sum().backward()
    outputs["gradient.input"] = x.grad
    for name, p in layers.named_parameters():
        if name.startswith("0.") and name.endswith(("weight", "bias_u", "bias_v")):
            outputs[f"gradient.{name}"] = p.grad
    found = {name: value.detach().numpy() for name, value in outputs.items()}
    np.savez_compressed(PATH, **tensors, **found)


if __name__ == "__main__":
    main()
