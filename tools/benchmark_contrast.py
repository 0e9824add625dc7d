"""Measures the contrastive losses by themselves: memory of a device, and time with the gradient.

    python -m tools.benchmark_contrast [--rows 32768] [--dim 768] [--dense]

One JSON line per loss and form, on all devices there are: in blocks round a ring, as training
computes it, and as the formula stands, with all pairs at once, whose memory is what the compiler
says; it is run with --dense only.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from encoders.errors import ConfigError, exit_cleanly
from launch.flags import Parser

KINDS = ("softmax", "sigmoid")
_CALLS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON line per loss and form."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32_768, help="pairs of the global batch")
    parser.add_argument("--dim", type=int, default=768, help="size of the embeddings")
    parser.add_argument("--dense", action="store_true", help="time the formula as it stands, too")
    flags = parser.parse(arguments)
    import jax

    devices = jax.device_count()
    if flags.rows < 1 or flags.rows % devices or flags.dim < 1:
        raise ConfigError(
            f"--rows: expected a multiple of the {devices} devices, and --dim at least 1; got "
            f"{flags.rows} and {flags.dim}."
        )
    for kind in KINDS:
        for form in ("ring", "dense"):
            found = measure(kind, form, flags.rows, flags.dim, form == "ring" or flags.dense)
            print(json.dumps(_about(flags.rows, flags.dim) | found), flush=True)
    return 0


def _about(rows: int, dim: int) -> dict[str, Any]:
    import jax

    device = jax.devices()[0].device_kind
    about = {"device": device, "devices": jax.device_count(), "jax": jax.__version__}
    return about | {"rows": rows, "dim": dim}


def measure(kind: str, form: str, rows: int, dim: int, timed: bool) -> dict[str, Any]:
    """What loss and gradient of one batch take: MiB of one device, and milliseconds if `timed`."""
    import jax
    import jax.numpy as jnp

    from encoders.layers.pooling import unit
    from encoders.parallel.contrast import contrast
    from encoders.parallel.mesh import batch_sharding, make_mesh

    mesh = make_mesh(data=-1, fsdp=1)
    place = batch_sharding(mesh)
    ring = mesh if form == "ring" else None

    def loss(image: Any, text: Any, scale: Any, bias: Any) -> Any:
        valid = jnp.ones(rows)
        return contrast(kind, image, text, scale, bias, valid, None, ring).loss

    def inputs(key: Any) -> Any:
        pairs = jax.random.normal(key, (2, rows, dim))
        return unit(pairs[0]), unit(pairs[1])

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
    image, text = jax.jit(inputs, out_shardings=(place, place))(jax.random.key(0))
    arguments = (image, text, jnp.float32(10), jnp.float32(-10))
    compiled = step.lower(*arguments).compile()
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    found: dict[str, Any] = {
        "loss": kind,
        "form": form,
        "device_mib": round((needed + memory.temp_size_in_bytes) / 2**20, 3),
    }
    if timed:
        times = []
        for _ in range(1 + _CALLS):  # the first warms up
            began = time.perf_counter()
            value, _ = jax.block_until_ready(compiled(*arguments))
            times.append(1e3 * (time.perf_counter() - began))
        found |= {"ms": round(statistics.median(times[1:]), 1), "value": float(value) / rows}
    return found


if __name__ == "__main__":
    exit_cleanly(main)
