"""A tiny encoder and clips of several lengths, for the tests of objectives on speech."""

import functools

import jax
import numpy as np

from encoders.models.wav2vec2 import Wav2Vec2
from encoders.parallel.mesh import make_mesh
from tests.objectives.stepping import one_step

ROWS, SAMPLES = 16, 123
ENCODER = Wav2Vec2(
    width=12,
    depth=1,
    mlp_dim=20,
    num_heads=2,
    conv_dim=8,
    conv_kernels=(4, 2),
    conv_strides=(2, 2),
    conv_norm="layer",
    position_kernel=4,
    position_groups=2,
    feature_gradient=0.1,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layer_drop=0.0,
)
FRAMES = 30  # of a whole row


@functools.cache
def batch(scale=1):
    """Clips of 5 to 30 frames, with transcripts and units; the last but two is padding.

    Or of `scale` times the samples, for a spectrogram.
    """
    rng = np.random.default_rng(0)
    length = rng.integers(25, SAMPLES + 1, ROWS).astype(np.int32)
    length[0] = SAMPLES
    length *= scale
    real = np.arange(SAMPLES * scale) < length[:, None]
    target_length = rng.integers(1, 4, ROWS).astype(np.int32)
    targets = rng.integers(1, 6, (ROWS, 4)).astype(np.int32)
    targets *= np.arange(4) < target_length[:, None]
    return {
        "waveform": (rng.normal(size=real.shape) * real).astype(np.float32),
        "length": length,
        "targets": targets,
        "target_length": target_length,
        "units": rng.integers(-1, 7, (ROWS, FRAMES)).astype(np.int32),
        "row": np.arange(ROWS, dtype=np.int32),
        "valid": np.arange(ROWS) != ROWS - 3,
    }


def batch_of(module):
    """Clips for its encoder."""
    return batch(1 if hasattr(module.encoder, "conv_dim") else 48)


@functools.cache
def variables(module):
    """Random parameters of which none is zero or one, and the other collections."""
    init = functools.partial(module.init, jax.random.key(0), batch_of(module))
    shapes = dict(jax.eval_shape(init))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes.pop("params")
    )
    others = {}
    if shapes:
        others = jax.device_get(dict(jax.jit(init)()))
        others.pop("params")
    return params, others


# Devices, and parts.
ONE = (("fsdp", 1),), 1
SPREAD = (("data", 2), ("fsdp", 4)), 2


@functools.cache
def train(module, sizes=ONE[0], micro_batches=1):
    """Metrics and gradients of a training step."""
    devices = jax.devices()[: int(np.prod([size for _, size in sizes]))]
    mesh = make_mesh(**dict(sizes), devices=devices)
    params, others = variables(module)
    return one_step(module, params, batch_of(module), mesh, micro_batches, others)
