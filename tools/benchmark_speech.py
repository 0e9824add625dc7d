"""Times two parts of encoders of speech alone: the convolution of positions, and the spectrogram.

    python -m tools.benchmark_speech [--clips 8] [--seconds 15.6] [--part positions|spectrogram]

One JSON line per case, on the first device: of wav2vec 2.0's convolution (width 768, 128 places, 16
groups) each formulation, milliseconds of the forward pass and of forward and backward together, and
the largest error of output and gradients against XLA's own in float32, as a share of the largest
value; of Whisper's log-mel spectrogram on the device, from int16 clips of the host, and in numpy on
one core as feature extractors compute it, milliseconds and seconds of sound per second. Medians of
five.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from encoders.errors import ConfigError, exit_cleanly, nearest
from launch.flags import Parser

FORMULATIONS = ("conv", "blocks", "fft")
PARTS = ("positions", "spectrogram")
WIDTH, KERNEL, GROUPS = 768, 128, 16
_CALLS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON line per case."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8, help="clips of a batch")
    parser.add_argument("--seconds", type=float, default=15.6, help="length of a clip")
    parser.add_argument("--part", default=None, help="positions or spectrogram; both if not given")
    flags = parser.parse(arguments)
    if flags.clips < 1 or flags.seconds < 0.1:
        raise ConfigError(
            f"--clips and --seconds: expected at least 1 and 0.1, got {flags.clips} and "
            f"{flags.seconds}."
        )
    if flags.part not in (None, *PARTS):
        raise ConfigError(f"--part: unknown '{flags.part}'.{nearest(flags.part, PARTS)}")
    import jax

    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    about |= {"clips": flags.clips, "seconds": flags.seconds}
    if flags.part != "spectrogram":
        for found in positions(flags.clips, round(50 * flags.seconds)):
            print(json.dumps(about | found), flush=True)
    if flags.part != "positions":
        for found in spectrogram(flags.clips, round(16_000 * flags.seconds)):
            print(json.dumps(about | found), flush=True)
    return 0


def positions(clips: int, frames: int, width: int = WIDTH, kernel: int = KERNEL) -> list[dict]:
    """Each formulation of the convolution, in float32 on CPUs and in bfloat16 elsewhere."""
    import jax
    import jax.numpy as jnp

    from encoders.layers.positional_conv import grouped_conv

    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rng = np.random.default_rng(0)
    shapes = ((clips, frames, width), (kernel, width // GROUPS, width), (clips, frames, width))
    x, weights, cotangent = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes)
    weights = weights * (kernel * width // GROUPS) ** -0.5

    def passes(formulation: str) -> tuple[Callable, Callable]:
        def forward(x: Any, weights: Any) -> Any:
            return grouped_conv(x, weights, GROUPS, formulation)

        def both(x: Any, weights: Any, cotangent: Any) -> Any:
            out, back = jax.vjp(forward, x, weights)
            return out, *back(cotangent)

        return jax.jit(forward), jax.jit(both)

    with jax.default_matmul_precision("highest"):
        exact = [np.asarray(y) for y in passes("conv")[1](x, weights, cotangent)]
    given = [y.astype(dtype) for y in (x, weights, cotangent)]
    lines = []
    for formulation in FORMULATIONS:
        forward, both = passes(formulation)
        errors = [
            float(np.abs(np.asarray(y, np.float32) - want).max() / np.abs(want).max())
            for y, want in zip(both(*given), exact, strict=True)
        ]
        found = {"part": "positions", "formulation": formulation, "dtype": np.dtype(dtype).name}
        found |= {"forward_ms": _ms(forward, *given[:2]), "both_ms": _ms(both, *given)}
        lines.append(found | {"error": float(f"{max(errors):.2g}")})
    return lines


def spectrogram(clips: int, samples: int) -> list[dict]:
    """Whisper's log-mel on the device, the clips' way there with it, and in numpy."""
    import jax

    from encoders.layers.spectrogram import whisper_log_mel

    rng = np.random.default_rng(0)
    waveforms = (3000 * rng.standard_normal((clips, samples))).astype(np.int16)

    @jax.jit
    def on_device(waveforms: Any) -> Any:
        return whisper_log_mel(waveforms.astype(np.float32) / 32768)[0]

    placed = jax.device_put(waveforms)
    ways = {
        "device": (on_device, placed),
        "device_from_host": (lambda x: on_device(jax.device_put(x)), waveforms),
        "numpy": (numpy_log_mel, waveforms),
    }
    want = on_device(placed)
    seconds = clips * samples / 16_000
    lines = []
    for way, (function, given) in ways.items():
        taken = _ms(function, given)
        found = {"part": "spectrogram", "way": way, "ms": taken}
        error = float(np.abs(np.asarray(function(given)) - want).max())
        found |= {"seconds_per_second": round(1e3 * seconds / taken), "error": error}
        lines.append(found)
    return lines


def numpy_log_mel(waveforms: np.ndarray) -> np.ndarray:
    """Whisper's log-mel of int16 clips [B, S], one after another, in numpy."""
    from encoders.layers.spectrogram import mel_filters

    filters = mel_filters(16_000, 400, 80)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)).astype(np.float32)
    spectra = []
    for clip in waveforms:
        x = np.pad(clip.astype(np.float32) / 32768, 200, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(x, 400)[:-1:160][: len(clip) // 160]
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        log_mel = np.log10(np.maximum(power @ filters, 1e-10))
        spectra.append((np.maximum(log_mel, log_mel.max() - 8) + 4) / 4)
    return np.stack(spectra)


def _ms(function: Callable, *arguments: Any) -> float:
    """The median time of a call, without the first, in milliseconds."""
    import jax

    times = []
    for _ in range(1 + _CALLS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - began))
    return float(f"{statistics.median(times[1:]):.3g}")


if __name__ == "__main__":
    exit_cleanly(main)
