"""Writes tests/golden/whisper: a tiny Whisper with what transformers computes, and sizes of all.

    python -m tools.golden.write_whisper

Needs the extra 'parity'. hf is a directory that transformers saved, expected.npz: hidden states
(after the convolutions and every layer; the last is normalised) and gradients of a clip that is
padded to POSITIONS and of one that fills SHORT; parameters.json: how many the encoders have.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch
import transformers

from tools.golden.inputs import sound, weight

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "whisper"
POSITIONS, SHORT, SAMPLES = 24, 15, 4937
_CONFIG = {
    "num_mel_bins": 16,
    "d_model": 20,
    "encoder_layers": 2,
    "encoder_attention_heads": 5,
    "encoder_ffn_dim": 24,
    "max_source_positions": POSITIONS,
    "decoder_layers": 1,
    "decoder_attention_heads": 5,
    "decoder_ffn_dim": 4,
    "vocab_size": 8,
    "max_target_positions": 4,
    "init_std": 0.3,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "decoder_start_token_id": 0,
}
GRADIENTS = (
    "conv1.weight",
    "conv2.bias",
    "layers.0.self_attn.k_proj.weight",
    "layers.1.self_attn.q_proj.bias",
    "layers.1.fc1.weight",
    "layer_norm.weight",
)
_SIZES = {"tiny": 384, "base": 512, "small": 768, "medium": 1024, "large": 1280}
_DEPTHS = {"tiny": 4, "base": 6, "small": 12, "medium": 24, "large": 32}


def _outputs(model: torch.nn.Module, positions: int) -> dict[str, np.ndarray]:
    encoder = model.model.encoder
    table = encoder.embed_positions.weight.data
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(table[:positions])
    encoder.max_source_positions = encoder.config.max_source_positions = positions
    clip = sound(SAMPLES)[0].astype(np.float32) / 32768
    clip = np.pad(clip, (0, max(0, 320 * positions - SAMPLES) if positions != SHORT else 0))
    extract = transformers.WhisperFeatureExtractor(feature_size=_CONFIG["num_mel_bins"])
    features = extract(clip, sampling_rate=16000, padding="do_not_pad", return_tensors="pt")
    found = encoder(features.input_features, output_hidden_states=True)
    last = found.last_hidden_state
    encoder.zero_grad()
    (last * torch.tensor(weight("direction", tuple(last.shape[1:])))).sum().backward()
    parameters = dict(encoder.named_parameters())
    outputs = {f"hidden_{i}": x[0] for i, x in enumerate(found.hidden_states)}
    outputs |= {f"gradient.{name}": parameters[name].grad for name in GRADIENTS}
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(table)
    encoder.config.max_source_positions = POSITIONS
    return {f"{positions}.{name}": x.detach().numpy() for name, x in outputs.items()}


def _count(size: str, mels: int) -> int:
    width = _SIZES[size]
    config = transformers.WhisperConfig(
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=_DEPTHS[size],
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
    )
    with torch.device("meta"):
        encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    return sum(p.numel() for p in encoder.parameters()) - 1500 * width  # a constant


def main() -> None:
    """Writes the directory."""
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**_CONFIG))
    model.eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p += 0.1 * torch.tensor(weight(name, tuple(p.shape)))
    model.save_pretrained(DIRECTORY / "hf")
    (DIRECTORY / "hf" / "generation_config.json").unlink(missing_ok=True)
    outputs = {**_outputs(model, POSITIONS), **_outputs(model, SHORT)}
    np.savez_compressed(DIRECTORY / "expected.npz", **outputs)
    counts = {f"{size}-80": _count(size, 80) for size in _SIZES} | {
        "large-128": _count("large", 128)
    }
    (DIRECTORY / "parameters.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
