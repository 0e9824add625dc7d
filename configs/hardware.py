"""How a machine is used, apart from the science: small named transforms of a config.

    python -m launch.local --config configs/mae_l16_in1k.py:remat,scan ...
    python -m launch.slurm --config configs/mae_l16_in1k.py:h200 ...

Each changes speed and memory only. They apply in the order they are named in, and --config.a.b=...
after all of them. An experiment's get_config calls `apply` on its argument.

A chip's transform sets the mesh, what does not fit otherwise, and `hardware.environment`: variables
to set before jax starts. What the user's own XLA_FLAGS or LIBTPU_INIT_ARGS have comes after these
and so wins. A compiler that does not know a flag ends the process, so there are few.
"""

from ml_collections import ConfigDict

# Compute goes on while parameters are gathered (all known to libtpu 0.0.42; the scheduler is on by
# default in it).
_TPU_OVERLAP = (
    "--xla_tpu_enable_latency_hiding_scheduler=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
)


# Their blocks differ, so nothing scans over them, or they have none.
WITHOUT_BLOCKS = ("clip_resnet", "efficientnet", "precomputed", "resnet")


def mesh(**sizes: int) -> dict[str, int]:
    """All axes of a mesh; those not given stay as they are on one slice: everything is `fsdp`."""
    return dict(dcn=1, data=1, fsdp=-1, tensor=1, sequence=1) | sizes


def section() -> ConfigDict:
    """The hardware section that experiments start from, for any machine."""
    return ConfigDict(dict(mesh=mesh(), environment=dict()))


def on(config: ConfigDict, sizes: dict[str, int], **environment: str) -> ConfigDict:
    """The config with another mesh, and variables added to its environment."""
    hardware = section()
    hardware.update(config.get("hardware", {}))
    hardware.mesh.update(sizes)
    hardware.environment.update(environment)
    config.hardware = hardware
    return config


def networks(config: ConfigDict) -> list[ConfigDict]:
    """Sections of the networks that have equal blocks: the model's, or those of its towers."""
    parts = [part for part in config.model.values() if isinstance(part, ConfigDict)]
    found = [part for part in parts if "name" in part] or [config.model]
    return [part for part in found if part.name not in WITHOUT_BLOCKS]


def in_networks(config: ConfigDict, **fields: object) -> ConfigDict:
    """The config with fields of its networks set."""
    for network in networks(config):
        network.update(fields)
    return config


def scan(config: ConfigDict) -> ConfigDict:
    """One compiled block for all layers: compile time no longer grows with depth."""
    return in_networks(config, scan=True)


def remat(config: ConfigDict) -> ConfigDict:
    """Keeps matrix products, recomputes the rest in the backward pass."""
    return in_networks(config, remat="dots")


def replicate(config: ConfigDict) -> ConfigDict:
    """Plain data parallelism: every device holds all parameters."""
    return on(config, mesh(data=-1, fsdp=1))


def fused(config: ConfigDict) -> ConfigDict:
    """Attention in one kernel on GPUs, in 16-bit floats; it has no dropout of the weights."""
    return in_networks(config, attention_kernel="fused")


def v4(config: ConfigDict) -> ConfigDict:
    """TPU v4, 32 GB. Parameters over the whole slice; with several, set hardware.mesh.dcn to it."""
    return on(config, mesh(), LIBTPU_INIT_ARGS=" ".join(_TPU_OVERLAP))


def v5e(config: ConfigDict) -> ConfigDict:
    """TPU v5e, 16 GB: as v4, and a block keeps nothing but its input.

    ViT-B/16 with 256 images per chip needs 20.3 GB for activations without that, 17.8 GB where
    matrix products are kept, and 4.6 GB with it (compiled for 4x4 chips).
    """
    return v4(in_networks(config, remat="full"))


def v5p(config: ConfigDict) -> ConfigDict:
    """TPU v5p, 95 GB: as v4, with more of the vector memory for one fusion.

    A step of ViT-L/16 on 64 chips then moves 24 % fewer bytes of HBM, by the compiler's own count.
    """
    flags = (*_TPU_OVERLAP, "--xla_tpu_scoped_vmem_limit_kib=65472")
    return on(config, mesh(), LIBTPU_INIT_ARGS=" ".join(flags))


def v6e(config: ConfigDict) -> ConfigDict:
    """TPU v6e, 32 GB: as v5p, with its own vector memory."""
    flags = (*_TPU_OVERLAP, "--xla_tpu_scoped_vmem_limit_kib=98304")
    return on(config, mesh(), LIBTPU_INIT_ARGS=" ".join(flags))


def a100(config: ConfigDict) -> ConfigDict:
    """Nodes of eight A100: parameters over the GPUs of a node, replicated over nodes.

    For nodes of another size set hardware.mesh.fsdp to it. O1 hides the latency of collectives.
    """
    return on(config, mesh(dcn=-1, fsdp=8), JAX_OPTIMIZATION_LEVEL="O1")


def h100(config: ConfigDict) -> ConfigDict:
    """Nodes of eight H100; see `a100`."""
    return a100(config)


def h200(config: ConfigDict) -> ConfigDict:
    """Nodes of eight H200: as `a100`, and with memory to spare for fewer, larger collectives."""
    flags = (
        f"--xla_gpu_all_reduce_combine_threshold_bytes={2 << 30}",
        f"--xla_gpu_all_gather_combine_threshold_bytes={2 << 30}",
        f"--xla_gpu_reduce_scatter_combine_threshold_bytes={16 << 20}",
    )
    return on(a100(config), {}, XLA_FLAGS=" ".join(flags))


TRANSFORMS = {
    transform.__name__: transform
    for transform in (scan, remat, replicate, fused, v4, v5e, v5p, v6e, a100, h100, h200)
}


def apply(config: ConfigDict, names: str | None) -> ConfigDict:
    """Applies the transforms named in a comma-separated argument.

    Raises:
      ValueError: a name that is not in TRANSFORMS.
    """
    for name in (names or "").split(","):
        if name and name not in TRANSFORMS:
            raise ValueError(f"unknown config argument '{name}'; known: {sorted(TRANSFORMS)}")
        config = TRANSFORMS[name](config) if name else config
    return config
