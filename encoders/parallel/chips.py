"""What one chip can do, for utilisation figures and plans: the vendors' figures.

Sources. TPU v4, v5e, v5p, v6e: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, where the interconnect
is what all links of a chip carry in one direction, and the data-centre network of v5e and v6e is
the pod's (6.4 and 25.6 Tbit/s) divided by its 256 chips, and v5p's 50 Gbit/s a chip. The v4 page
gives no network (v5p's is taken) and no sum of links (half of v5p's: 2,400 and 4,800 Gbit/s). A100
80GB SXM, H100 SXM, H200: their data sheets; NVLink's figure is halved, as it counts both
directions, and the network is that of the DGX A100, H100 and H200 user guides, one adapter of 200
or 400 Gbit/s for each GPU. HBM of v5e is what its compiler gives to a program: 15.75 of 16 GiB.
"""

from __future__ import annotations

import dataclasses

import jax

_GB = 1e9
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      flops: dense bf16 FLOP/s.
      memory: bytes of HBM.
      bandwidth: bytes/s of HBM.
      interconnect: bytes/s that it sends to the chips of its slice or node, over all links.
      network: bytes/s that it sends to other slices or nodes.
      torus: dimensions of the interconnect, whose links are shared out among them; 0 is a switch.
      node: chips that one interconnect joins at most; None where that is a matter of the topology.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    network: float
    torus: int = 0
    node: int | None = None


# By device_kind. 'TPU v5' is what jax calls v5p.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * _GIB, 1200 * _GB, 300 * _GB, 6.25 * _GB, torus=3),
    "TPU v5 lite": Chip(197e12, 15.75 * _GIB, 819 * _GB, 200 * _GB, 3.125 * _GB, torus=2),
    "TPU v5": Chip(459e12, 95 * _GIB, 2765 * _GB, 600 * _GB, 6.25 * _GB, torus=3),
    "TPU v6 lite": Chip(918e12, 32 * _GIB, 1640 * _GB, 400 * _GB, 12.5 * _GB, torus=2),
    "NVIDIA A100": Chip(312e12, 80 * _GIB, 2039 * _GB, 300 * _GB, 25 * _GB, node=8),
    "NVIDIA H100": Chip(989e12, 80 * _GIB, 3350 * _GB, 450 * _GB, 50 * _GB, node=8),
    "NVIDIA H200": Chip(989e12, 141 * _GB, 4800 * _GB, 450 * _GB, 50 * _GB, node=8),
}
_TPU_V3_FLOPS = 61.5e12  # of one core, which is one device

# The names that people use.
KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "A100": "NVIDIA A100",
    "H100": "NVIDIA H100",
    "H200": "NVIDIA H200",
}


def chip(kind: str) -> Chip | None:
    """The chip that a device_kind names, or None where no data sheet says (a CPU)."""
    known = [name for name in CHIPS if kind.startswith(name)]
    return CHIPS[max(known, key=len)] if known else None


def peak_flops(device: jax.Device) -> float | None:
    """Dense bf16 FLOP/s of a device, or None where no data sheet says (a CPU)."""
    if device.device_kind.startswith("TPU v3"):
        return _TPU_V3_FLOPS
    found = chip(device.device_kind)
    return found.flops if found else None
