"""Checks and times the fused attention kernel against the plain formula, on a GPU.

    python -m tools.benchmark_attention

One JSON line per shape and mask: the largest error of output and gradients, of both, in bfloat16
against the plain formula in float32, as a share of the largest value; and milliseconds of forward
and backward together, the median of five blocks of ten calls that alternate. It fails where the
fused kernel errs more than twice as much as the plain one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from encoders.errors import ConfigError, EncodersError, exit_cleanly
from launch.flags import Parser

# (batch, tokens, heads, size of a head, mask): BERT at 128 and 512, a ViT's odd 197, longer rows.
SHAPES = (
    (256, 128, 12, 64, "none"),
    (256, 128, 12, 64, "segments"),
    (64, 512, 12, 64, "none"),
    (64, 512, 12, 64, "segments"),
    (64, 512, 12, 64, "padding"),
    (128, 197, 12, 64, "none"),
    (128, 197, 12, 64, "padding"),
    (16, 1024, 16, 64, "segments"),
    (8, 2048, 16, 128, "segments"),
)
_BLOCKS, _CALLS = 5, 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON line per case."""
    Parser(__doc__.splitlines()[0]).parse(arguments)
    import jax

    if jax.default_backend() != "gpu":
        raise ConfigError(f"tools.benchmark_attention: needs a GPU, found {jax.default_backend()}.")
    device = jax.devices()[0].device_kind
    failed = []
    for shape in SHAPES:
        found = {"device": device, "jax": jax.__version__, "shape": shape} | measure(*shape)
        print(json.dumps(found), flush=True)
        if not found["fused_error"] <= 2 * found["plain_error"]:  # NaN fails as well
            failed.append(shape)
    if failed:
        raise EncodersError(f"the fused kernel is wrong for {failed}.")
    return 0


def measure(batch: int, tokens: int, heads: int, head: int, kind: str) -> dict[str, float]:
    """Errors and times of one case."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from encoders.layers.attention import dot_product_attention, visible
    from encoders.layers.fused_attention import fused_attention

    rng = np.random.default_rng(0)
    shape = (4, batch, tokens, heads, head)
    *inputs, cotangent = jnp.asarray(rng.normal(size=shape).astype("f4"), jnp.bfloat16)
    mask, segments = None, None
    if kind == "padding":
        lengths = rng.integers(tokens // 4, tokens + 1, batch)
        mask = jnp.asarray(np.arange(tokens) < lengths[:, None])
    elif kind == "segments":
        cuts = rng.random((batch, tokens)) < 8 / tokens
        segments = (
            jnp.asarray(1 + np.cumsum(cuts, 1), jnp.int32).at[:, tokens - tokens // 16 :].set(0)
        )

    def plain(query: Any, key: Any, value: Any) -> Any:
        return dot_product_attention(query, key, value, mask, segments=segments)

    def fused(query: Any, key: Any, value: Any) -> Any:
        return fused_attention(query, key, value, visible(mask, segments), None)

    real = jnp.ones((batch, tokens), bool) if mask is None else mask
    real = real if segments is None else segments > 0

    def with_gradient(attend: Callable) -> Callable:
        @jax.jit
        def run(query: Any, key: Any, value: Any, cotangent: Any) -> tuple:
            out, back = jax.vjp(attend, query, key, value)
            return out * real[..., None, None].astype(out.dtype), *back(
                cotangent.astype(out.dtype) * real[..., None, None].astype(out.dtype)
            )

        return run

    with jax.default_matmul_precision("highest"):
        exact = with_gradient(plain)(*(x.astype(jnp.float32) for x in (*inputs, cotangent)))
        exact = [np.asarray(x) for x in exact]
    runs = {"plain": with_gradient(plain), "fused": with_gradient(fused)}
    found: dict[str, float] = {}
    for name, run in runs.items():
        errors = [
            float(np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max())
            for x, y in zip(run(*inputs, cotangent), exact, strict=True)
        ]
        found[f"{name}_error"] = max(errors)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_BLOCKS):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(_CALLS):
                out = run(*inputs, cotangent)
            jax.block_until_ready(out)
            times[name].append(1e3 * (time.perf_counter() - began) / _CALLS)
    found |= {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    found["speedup"] = found["plain_ms"] / found["fused_ms"]
    return {name: float(f"{value:.3g}") for name, value in found.items()}


if __name__ == "__main__":
    exit_cleanly(main)
