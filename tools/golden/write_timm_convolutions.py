"""Writes tests/golden/convolutions/timm_*.npz: what timm's ResNets and EfficientNets compute.

    python -m tools.golden.write_timm_convolutions

Needs the extra 'parity'. Weights are those of `inputs.weight`; here are only outputs of an image of
odd sides, and of a ResNet some gradients, under the names of the weights.
"""

from __future__ import annotations

import numpy as np
import torch

from tools.golden.inputs import picture, weight
from tools.golden.pair_models import open_clip
from tools.golden.write_convolutions import DIRECTORY

SIZE, CLASSES = (65, 47), 5
CASES = {
    "resnet18": {"layers": (1, 1, 1, 1)},
    "resnet50": {"layers": (1, 2, 1, 1)},
    "efficientnet_b0": {},
    "tf_efficientnet_b0": {},
}
_GRADIENTS = ("conv1.weight", "layer2.0.bn1.weight", "layer3.0.downsample.1.bias", "fc.bias")


def outputs(name: str) -> dict[str, np.ndarray]:
    """The last map, its mean and the logits; and gradients of a loss."""
    _, timm = open_clip()
    model = timm.create_model(name, num_classes=CLASSES, **CASES[name]).eval()
    state = {
        key: torch.from_numpy(weight(key, tuple(value.shape))) if value.ndim else value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    images = picture(SIZE)
    features = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    logits = model.forward_head(features)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
    found = {
        "map": features.permute(0, 2, 3, 1).flatten(1, 2),
        "pooled": features.mean((2, 3)),
        "logits": logits,
    }
    weights = dict(model.named_parameters())
    if name.startswith("resnet"):
        found |= {f"gradients/{key}": weights[key].grad for key in _GRADIENTS}
    return {key: value.detach().numpy() for key, value in found.items()}


def main() -> None:
    """Writes all cases."""
    for name in CASES:
        np.savez_compressed(DIRECTORY / f"timm_{name}.npz", **outputs(name))


if __name__ == "__main__":
    main()
