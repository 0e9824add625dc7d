"""Writes tests/golden/speech_losses.npz: losses of transformers and PyTorch on random numbers.

    python -m tools.golden.write_speech_losses        # needs the extra 'parity'

Encoders are left out: wav2vec 2.0's losses are of given features and given outputs of the blocks,
with given masks, negatives and noise. Each comes with its gradients, from PyTorch in float32.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
BATCH, FRAMES, CHANNELS, WIDTH, NEGATIVES = 3, 14, 6, 8, 4
LENGTHS = (14, 9, 12)


class _Outputs(tuple):
    """What wav2vec 2.0 gives its heads."""

    last_hidden_state = property(lambda self: self[0])
    extract_features = property(lambda self: self[1])
    hidden_states = attentions = None


def contrast() -> dict[str, torch.Tensor]:
    """wav2vec 2.0's losses, of 2 codebooks of 5 entries."""
    config = transformers.Wav2Vec2Config(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(CHANNELS,),
        conv_kernel=(2,),
        conv_stride=(2,),
        num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=2,
        num_codevectors_per_group=5,
        codevector_dim=6,
        proj_codevector_dim=4,
        feat_quantizer_dropout=0.0,
    )
    model = transformers.Wav2Vec2ForPreTraining(config).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(BATCH, FRAMES, CHANNELS, requires_grad=True)
    tokens = torch.randn(BATCH, FRAMES, WIDTH, requires_grad=True)
    noise = -torch.empty(BATCH, FRAMES, 2, 5).exponential_().log()
    temperature = 1.3
    model.wav2vec2.forward = lambda *_, **__: _Outputs((tokens, features))
    model.set_gumbel_temperature(temperature)

    def drawn(logits: torch.Tensor, tau: float, hard: bool) -> torch.Tensor:
        assert hard
        logits = (logits + noise.reshape(logits.shape)) / tau
        soft = logits.softmax(-1)
        one_hot = torch.nn.functional.one_hot(logits.argmax(-1), 5)
        return one_hot + soft - soft.detach()

    mask = torch.rand(BATCH, FRAMES) < 0.6
    mask &= torch.arange(FRAMES) < torch.tensor(LENGTHS)[:, None]
    original, torch.nn.functional.gumbel_softmax = torch.nn.functional.gumbel_softmax, drawn
    try:
        codes = model.quantizer.weight_proj(features).reshape(BATCH, FRAMES, 2, 5) + noise
        negatives = _negatives(mask, codes.argmax(-1))
        flat = negatives + FRAMES * torch.arange(BATCH)[:, None, None]
        found = model(None, mask_time_indices=mask, sampled_negative_indices=flat)
    finally:
        torch.nn.functional.gumbel_softmax = original
    found.loss.backward()
    arrays = {
        "features": features,
        "tokens": tokens,
        "noise": noise,
        "temperature": torch.tensor(temperature),
        "mask": mask,
        "negatives": negatives,
        "contrastive_loss": found.contrastive_loss,
        "diversity_loss": found.diversity_loss,
        "perplexity": found.codevector_perplexity,
        "loss": found.loss,
        "gradients/features": features.grad,
        "gradients/tokens": tokens.grad,
    }
    for name, value in model.named_parameters():
        if value.grad is not None:
            arrays |= {f"params/{name}": value, f"gradients/{name}": value.grad}
    return arrays


def _negatives(mask: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """[B, T, N] other hidden frames of the row, of other codes: PyTorch's equal ones may differ
    in their last bits, and would then count.
    """
    rng = np.random.default_rng(0)
    found = np.zeros((*mask.shape, NEGATIVES), np.int64)
    for row, frame in np.argwhere(mask.numpy()):
        differ = (codes[row] != codes[row, frame]).any(-1) & mask[row]
        found[row, frame] = rng.choice(np.flatnonzero(differ.numpy()), NEGATIVES)
    return torch.from_numpy(found)


def ctc() -> dict[str, torch.Tensor]:
    """Transcripts of several lengths; the third has no room for a blank between equal tokens."""
    logits = torch.randn(5, 9, 6, requires_grad=True)
    frames, lengths = torch.tensor([9, 6, 4, 7, 5]), torch.tensor([4, 5, 4, 1, 0])
    targets = torch.tensor([[1, 2, 2, 5], [1, 2, 3, 4], [3, 3, 2, 1], [4, 0, 0, 0], [0, 0, 0, 0]])
    targets = torch.nn.functional.pad(targets, (0, 1))
    targets[1, 4] = 5
    losses = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        targets,
        frames,
        lengths,
        blank=0,
        reduction="none",
        zero_infinity=True,
    )
    losses.sum().backward()
    return {
        "logits": logits,
        "frames": frames,
        "targets": targets,
        "lengths": lengths,
        "losses": losses,
        "gradients": logits.grad,
    }


def main() -> None:
    torch.manual_seed(0)
    arrays = {}
    for name, found in (("contrast", contrast()), ("ctc", ctc())):
        for key, value in found.items():
            array = value.detach().numpy()
            kind = {"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype)
            arrays[f"{name}/{key}"] = array.astype(kind)
    np.savez_compressed(GOLDEN / "speech_losses.npz", **arrays)


if __name__ == "__main__":
    main()
