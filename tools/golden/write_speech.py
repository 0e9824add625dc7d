"""Writes tests/golden/speech: tiny encoders of raw speech of transformers, and published sizes.

    python -m tools.golden.write_speech [CASE ...]        # needs the extra 'parity'

Only the named cases are written, or all of them; none is ever removed.

Every case is a directory that transformers saved, and expected.npz: inputs, outputs, hidden states
and gradients under transformers' names, and what its heads give, from PyTorch on the CPU in
float32; the tests that read it need none. parameters.json counts the parameters of every published
size.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from tools.golden.cases import save, write_counts

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "speech"

_TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 8,
    "ctc_zero_infinity": True,
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout"), 0.0),
    **dict.fromkeys(("final_dropout", "layerdrop"), 0.0),
}
_LAYER = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
_QUANTIZER = {
    "num_codevectors_per_group": 5,
    "num_codevector_groups": 2,
    "codevector_dim": 6,
    "proj_codevector_dim": 7,
    "num_negatives": 4,
}
_POSITIONS = {"conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2}
# name -> (class, config class, fields, whether the second clip is padded, do_normalize)
CASES = {
    "wav2vec2": (
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2Config",
        {**_TINY, **_QUANTIZER},
        False,
        False,
    ),
    "wav2vec2_layer": (
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2Config",
        {**_TINY, **_QUANTIZER, **_LAYER, "hidden_act": "relu", "layer_norm_eps": 1e-3},
        True,
        True,
    ),
    "wav2vec2_ctc": ("Wav2Vec2ForCTC", "Wav2Vec2Config", {**_TINY, **_LAYER}, True, True),
    "hubert": (
        "HubertModel",
        "HubertConfig",
        {**_TINY, "feat_proj_layer_norm": False, "num_conv_pos_embeddings": 5},
        False,
        False,
    ),
    "hubert_ctc": ("HubertForCTC", "HubertConfig", {**_TINY, **_LAYER}, True, True),
    "data2vec": (
        "Data2VecAudioForCTC",
        "Data2VecAudioConfig",
        {**_TINY, **_POSITIONS},
        False,
        True,
    ),
}
_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]
SAMPLES = (403, 290)  # odd, and of the second clip where it is padded


def _sizes(width: int, depth: int, heads: int, **others: object) -> dict[str, object]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        **others,
    }


_LARGE = _sizes(1024, 24, 16)
# our model -> (class, config class, variant -> fields of its published config.json)
PUBLISHED = {
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {
            "base": {},
            "large": {**_LARGE, **_LAYER},
            "1B": _sizes(1280, 48, 16, **_LAYER),
            "2B": _sizes(1920, 48, 16, **_LAYER),
        },
    ),
    "hubert": (
        "HubertModel",
        "HubertConfig",
        {"base": {}, "large": {**_LARGE, **_LAYER}, "xlarge": _sizes(1280, 48, 16, **_LAYER)},
    ),
    "data2vec_audio": (
        "Data2VecAudioModel",
        "Data2VecAudioConfig",
        {"base": {}, "large": _LARGE},
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter a value that matters: initial zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.2 * noise)
            elif name.endswith(("weight", "original1")):
                value.copy_(1.5 * noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.5 * noise)


def inputs(padded: bool, normalize: bool) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Two waveforms, and what the model is given: they are normalised by the feature extractor."""
    waveform = np.random.default_rng(5).normal(0.05, 0.2, (2, SAMPLES[0])).astype(np.float32)
    lengths = SAMPLES if padded else (SAMPLES[0],) * 2
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=normalize, return_attention_mask=True
    )
    clips = [clip[:length] for clip, length in zip(waveform, lengths, strict=True)]
    given = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    waveform[1, lengths[1] :] = 0
    return waveform, dict(given)


def masks(frames: Sequence[int], negatives: int) -> dict[str, torch.Tensor]:
    """Which frames are hidden [B, T], and negatives [B, T, K] from the hidden ones of their row."""
    generator = np.random.default_rng(9)
    hidden = np.zeros((len(frames), max(frames)), bool)
    sampled = np.zeros((*hidden.shape, negatives), np.int64)
    for row, count in enumerate(frames):
        places = np.sort(generator.choice(count, 7 + row, replace=False))
        hidden[row, places] = True
        for place in places:
            others = places[places != place]
            sampled[row, place] = generator.choice(others, negatives) + row * hidden.shape[1]
    return {"hidden": torch.tensor(hidden), "negatives": torch.tensor(sampled)}


def run_trunk(trunk: torch.nn.Module, given: dict, hidden: torch.Tensor, real: torch.Tensor):
    """Outputs with and without hidden frames, and gradients of a linear function of the first."""
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: states.append(output))
        for layer in trunk.encoder.layers
    ]
    plain = trunk(**given)
    outputs = {"tokens": plain.last_hidden_state, "hidden": torch.stack(states)}
    features = trunk.feature_extractor(given["input_values"]).transpose(1, 2)
    if hasattr(trunk.feature_projection, "layer_norm"):
        features = trunk.feature_projection.layer_norm(features)
    outputs["features"] = features
    for hook in hooks:
        hook.remove()
    trunk.zero_grad()
    masked = trunk(**given, mask_time_indices=hidden).last_hidden_state
    outputs["masked_tokens"] = masked
    generator = torch.Generator().manual_seed(7)
    cotangent = torch.randn(masked.shape, generator=generator) / 10 * real[..., None]
    (masked * cotangent).sum().backward()
    gradients = {k: v.grad.clone() for k, v in trunk.named_parameters()}
    return outputs, {"tokens": cotangent}, gradients


def run_contrast(model: torch.nn.Module, given: dict, drawn: dict) -> dict[str, torch.Tensor]:
    """Quantized vectors at evaluation; losses and gradients in training with given Gumbel noise."""
    config, hidden = model.config, drawn["hidden"]
    passed = {"mask_time_indices": hidden, "sampled_negative_indices": drawn["negatives"]}
    out = model.eval()(**given, **passed)
    found = {
        f"eval/{key}": out[key]
        for key in (
            "projected_states",
            "projected_quantized_states",
            "codevector_perplexity",
            "contrastive_loss",
            "diversity_loss",
            "loss",
        )
    }
    entries, groups = config.num_codevectors_per_group, config.num_codevector_groups
    shape = (*hidden.shape, groups, entries)
    generator = torch.Generator().manual_seed(13)
    noise = -torch.log(-torch.log(torch.rand(shape, generator=generator)))

    def chosen(logits: torch.Tensor, tau: float, hard: bool) -> torch.Tensor:
        soft = ((logits + noise.view(-1, entries)) / tau).softmax(-1)
        one = torch.nn.functional.one_hot(soft.argmax(-1), entries).to(soft.dtype)
        return one - soft.detach() + soft

    kept = torch.nn.functional.gumbel_softmax
    torch.nn.functional.gumbel_softmax = chosen
    model.zero_grad()
    model.set_gumbel_temperature(0.7)
    out = model.train()(**given, **passed)
    out.loss.backward()
    torch.nn.functional.gumbel_softmax = kept
    model.eval()
    found |= {"noise": noise, "temperature": torch.tensor(0.7)}
    for key in ("codevector_perplexity", "contrastive_loss", "diversity_loss", "loss"):
        found[f"train/{key}"] = out[key]
    return found | {f"gradients/{k}": v.grad for k, v in model.named_parameters()}


def run_ctc(model: torch.nn.Module, given: dict) -> dict[str, torch.Tensor]:
    """Scores, and the loss of two transcripts with its gradients."""
    labels = torch.tensor([[5, 6, 6, 4, 7], [7, 5, -100, -100, -100]])
    model.zero_grad()
    out = model(**given, labels=labels)
    out.loss.backward()
    gradients = {
        f"gradients/{k}": v.grad for k, v in model.named_parameters() if v.grad is not None
    }
    return {"labels": labels, "logits": out.logits, "loss": out.loss, **gradients}


def write_case(name: str) -> None:
    """Runs a network and saves all."""
    kind, config_kind, fields, padded, normalize = CASES[name]
    config = getattr(transformers, config_kind)(**fields)
    model = getattr(transformers, kind)._from_config(config, attn_implementation="eager").eval()
    randomize(model, seed=len(name))
    directory = DIRECTORY / name
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=normalize, return_attention_mask=fields.get("feat_extract_norm") == "layer"
    )
    extractor.save_pretrained(directory)
    if kind.endswith("CTC"):
        vocabulary = {token: number for number, token in enumerate(_TOKENS)}
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
    trunk, (waveform, given) = model.base_model, inputs(padded, normalize)
    mask = given.pop("attention_mask")
    frames = [int(model._get_feat_extract_output_lengths(int(n))) for n in mask.sum(1)]
    real = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    if padded:
        given["attention_mask"] = mask
    drawn = masks(frames, 4)
    outputs, cotangents, gradients = run_trunk(trunk, given, drawn["hidden"], real)
    groups = {
        "inputs": {"waveform": torch.tensor(waveform), "mask": mask, "frames": real, **drawn},
        "outputs": outputs,
        "cotangents": cotangents,
        "gradients": gradients,
    }
    if kind.endswith("PreTraining"):
        groups["heads"] = run_contrast(model, given, drawn)
    if kind.endswith("CTC"):
        groups["heads"] = run_ctc(model, given)
    save(directory, groups)


def main(names: Sequence[str]) -> None:
    """Writes cases anew, and the counts of parameters."""
    for name in names or CASES:
        write_case(name)
    write_counts(DIRECTORY, PUBLISHED)


if __name__ == "__main__":
    main(sys.argv[1:])
