"""TPU pods that are only described: their devices compile programs and run none."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

from encoders.errors import ConfigError, nearest

GENERATIONS = ("v4", "v5e", "v5p", "v6e")
_FORM = re.compile(r"(?:(\d+)\s*x\s+|(\d+)x(?=v))?(\w+):(\d+(?:x\d+)+)")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of TPU chips: `v5p:8x8x16`, or `2x v5e:16x16` for two that a network joins."""

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        one = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        return one if self.slices == 1 else f"{self.slices}x {one}"


def parse_topology(text: str, slices: int | None = None) -> Topology:
    """Reads a topology as it is written on the command line.

    Raises:
      ConfigError: it is not one.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"--topology: expected a generation and its chips, such as v5p:8x8x8 or "
            f"'2x v5e:16x16', got '{text}'."
        )
    generation = found[3]
    if generation not in GENERATIONS:
        raise ConfigError(
            f"--topology: unknown TPU '{generation}'.{nearest(generation, GENERATIONS)}"
        )
    shape = tuple(int(n) for n in found[4].split("x"))
    dimensions = 2 if generation in ("v5e", "v6e") else 3
    if len(shape) != dimensions:
        raise ConfigError(
            f"--topology: {generation} is a torus of {dimensions} dimensions, got '{found[4]}'."
        )
    return Topology(generation, shape, slices or int(found[1] or found[2] or 1))


def prepare_environment(generation: str = "v5e") -> None:
    """Makes libtpu quiet and content on a machine without a TPU; before jax starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "TPU_ACCELERATOR_TYPE": {"v5e": "v5litepod-8", "v6e": "v6e-8"}.get(
            generation, f"{generation}-8"
        ),
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # its lock is for real chips
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, one for each chip.

    Raises:
      ConfigError: libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "--topology: compiling for TPUs needs libtpu; install it by `pip install "
            "encoders[plan]`, or plan from counts with --devices."
        )
    prepare_environment(topology.generation)
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.generation == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device
    name = f"{topology.generation}:{'x'.join(map(str, topology.shape))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"--topology: libtpu knows no '{name}' ({reason}).") from error
    return list(found.devices)
