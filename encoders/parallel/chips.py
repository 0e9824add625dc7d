"""What one chip can do, for utilisation figures."""

from __future__ import annotations

import jax

# Dense bf16 FLOP/s per device, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v3": 61.5e12,  # one core is one device
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Dense bf16 FLOP/s of a device, or None where no data sheet says (a CPU)."""
    kind = device.device_kind
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None
