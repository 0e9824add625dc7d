"""Writes tests/golden/text_positions.npz: positions of transformers' T5 and DistilBERT.

python -m tools.golden.write_positions        # needs the extra 'parity'
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

FILE = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "text_positions.npz"


def main() -> None:
    """Writes the file anew."""
    torch.manual_seed(0)
    config = transformers.T5Config(d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=3)
    attention = transformers.T5EncoderModel(config).encoder.block[0].layer[0].SelfAttention
    table = torch.randint(-99, 99, (config.relative_attention_num_buckets, 3)).float()
    attention.relative_attention_bias.weight.data = table
    sinusoidal = torch.zeros(50, 12)
    create_sinusoidal_embeddings(50, 12, sinusoidal)
    np.savez_compressed(
        FILE,
        table=table.numpy().astype(np.int8),
        bias=attention.compute_bias(150, 150).detach().numpy().astype(np.int8),
        sinusoidal=sinusoidal.numpy(),
    )


if __name__ == "__main__":
    main()
