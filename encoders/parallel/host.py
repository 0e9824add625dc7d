"""The host's memory, handled as jax and XLA use it."""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import sys

# glibc's mallopt(3) parameters.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# NVIDIA and AMD GPUs, GPUs under WSL, TPUs of all generations.
_ACCELERATORS = ("nvidia*", "kfd", "dxg", "accel*", "vfio/[0-9]*")


def retain_freed_memory() -> bool:
    """Lets the process keep freed memory for reuse, where the CPU is what trains.

    XLA allocates all temporaries of a step anew at every step, about a gigabyte for ViT-S/16 at
    batch 8. glibc maps such blocks from the kernel and unmaps them when they are freed, so that
    every page is faulted in and zeroed again in every step: a sixth of the step's time. With one
    arena that neither maps nor trims, the second step reuses the pages of the first.

    Threads keep the arena they started with, so this must run before jax starts its own: first
    thing in a command's `main`. It changes nothing with an accelerator, or without glibc.

    Returns:
      Whether the allocator was changed.
    """
    if sys.platform != "linux" or has_accelerator():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a libc without it, such as musl
        return False
    wanted = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
    accepted = [mallopt(option, value) == 1 for option, value in wanted.items()]
    return all(accepted)


def look_for_garbage_rarely() -> None:
    """Makes Python look for unreachable cycles less often; before jax is imported.

    Importing and tracing make very many small objects, and nearly all of them stay: to look through
    them again after every 700 more takes a fifth of the time from a command to its first step.
    """
    gc.set_threshold(10_000, 20, 20)


def has_accelerator() -> bool:
    """Whether jax will find one, judged without starting jax."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(any(pathlib.Path("/dev").glob(device)) for device in _ACCELERATORS)


def settle_platform() -> None:
    """Tells jax to train on the CPU where there is nothing else; before jax is imported.

    Without being told it looks for a TPU wherever libtpu is installed, as it is for plans, and
    complains at length that there is none.
    """
    if "JAX_PLATFORMS" not in os.environ and not has_accelerator():
        os.environ["JAX_PLATFORMS"] = "cpu"
