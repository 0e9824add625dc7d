"""Runs on Google Kubernetes Engine: python -m launch.gke --config C --workdir W --topology 8x8x8

A JobSet: one Job for each slice, one pod for each host. Every field of the manifest is checked
before it is submitted. docs/launch/gke.md tells what restarts and what does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from encoders.errors import STOPPED, ConfigError, exit_cleanly, nearest
from launch.clusters import backend, tpus
from launch.clusters.backend import Mount
from launch.clusters.jobset import check_manifest
from launch.job import Job

_NEEDED = "install it and connect it to a cluster, or look at the manifest with --dry-run"
GRACE = 300  # seconds that a pod has to save

# --accelerator -> the label cloud.google.com/gke-accelerator, GPUs of a node.
GPUS = {
    "a100": ("nvidia-a100-80gb", 8),
    "h100": ("nvidia-h100-80gb", 8),
    "h200": ("nvidia-h200-141gb", 8),
}
_COORDINATOR_PORT = 1234


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image", required=True, help="container image with this project installed")
    add("--accelerator", default="v5p", help=f"{', '.join([*tpus.GENERATIONS, *GPUS])}")
    add("--topology", metavar="8x8x8", help="of a TPU slice")
    add("--slices", type=int, default=1, metavar="N", help="TPU slices of a run")
    add("--nodes", type=int, metavar="N", help="GPU nodes of a run")
    add("--mount", action="append", default=[], metavar="SOURCE:PATH",
        help="shared: gs://BUCKET:/PATH, HOST:/SHARE:/PATH or claim://NAME:/PATH")  # fmt: skip
    add("--namespace", help="by default the one that kubectl is set to")
    add("--service-account", help="of Kubernetes, with access to the buckets")
    add("--spot", action="store_true", help="cheaper, and may be preempted")
    add("--reservation", help="name of a reservation")
    add("--priority-class")
    add(
        "--retries", type=int, default=3, metavar="R", help="how many failures to start again after"
    )
    add("--python", default="python3", help="the interpreter in the image")
    add("--checkout", default="/encoders", help="this project in the image")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable")


def render(jobs: Sequence[Job], flags: argparse.Namespace) -> dict[str, str]:
    """A checked manifest for each run, under its file name.

    Raises:
      ConfigError: a flag, config or workdir is wrong, or a field of the manifest.
    """
    mounts = _check(jobs, flags)
    files = {}
    for name, job in zip(backend.names_of(jobs), jobs, strict=True):
        manifest = make_manifest(name, job, flags, mounts)
        check_manifest(manifest)
        files[f"{name}.yaml"] = yaml.safe_dump(manifest, sort_keys=False, width=100)
    return files


def submit(jobs: Sequence[Job], flags: argparse.Namespace) -> list[str]:
    """Creates the JobSets; returns their names.

    Raises:
      ConfigError: as `render`.
      SubmitError: kubectl is missing or the cluster refused.
    """
    created = []
    for (file, text), job in zip(render(jobs, flags).items(), jobs, strict=True):
        backend.call(["kubectl", "create", "-f", "-"], text=text, needed=_NEEDED)
        created.append(file.removesuffix(".yaml"))
        print(f"created JobSet {created[-1]}: {job.workdir}")
    return created


def _check(jobs: Sequence[Job], flags: argparse.Namespace) -> list[Mount]:
    backend.at_least("--slices", flags.slices, 1)
    backend.at_least("--retries", flags.retries, 0)
    known = [*tpus.GENERATIONS, *GPUS]
    if flags.accelerator not in known:
        raise ConfigError(
            f"--accelerator {flags.accelerator}: unknown.{nearest(flags.accelerator, known)}"
        )
    if flags.accelerator in GPUS:
        if flags.nodes is None or flags.topology is not None or flags.slices != 1:
            raise ConfigError(
                f"--accelerator {flags.accelerator} needs --nodes N, and no --topology or --slices."
            )
        backend.at_least("--nodes", flags.nodes, 1)
    elif flags.topology is None or flags.nodes is not None:
        raise ConfigError(
            f"--accelerator {flags.accelerator} needs --topology, such as "
            f"{'4x4x4' if tpus.GENERATIONS[flags.accelerator].dimensions == 3 else '4x4'}, and no "
            f"--nodes."
        )
    else:
        tpus.from_topology(flags.accelerator, flags.topology)
    backend.check_shared("--checkout", flags.checkout)
    backend.check_jobs(jobs, copied=True)
    return backend.read_mounts(flags.mount, ("bucket", "nfs", "claim"), jobs)


# --- the manifest ---------------------------------------------------------------------------------


def make_manifest(
    name: str, job: Job, flags: argparse.Namespace, mounts: Sequence[Mount]
) -> dict[str, Any]:
    """The JobSet of one run, not yet checked."""
    if flags.accelerator in GPUS:
        label, each = GPUS[flags.accelerator]
        hosts, devices, resource = flags.nodes, flags.nodes * each, "nvidia.com/gpu"
        selector = {"cloud.google.com/gke-accelerator": label}
        env = {
            "JAX_COORDINATOR_ADDRESS": f"{name}-slice-0-0.{name}:{_COORDINATOR_PORT}",
            "JAX_NUM_PROCESSES": str(hosts),
        }
        ports = {"coordinator": _COORDINATOR_PORT}
    else:
        piece = tpus.from_topology(flags.accelerator, flags.topology)
        hosts, each, resource = piece.hosts, piece.chips_per_host, "google.com/tpu"
        devices = piece.chips * flags.slices
        selector = {
            "cloud.google.com/gke-tpu-accelerator": tpus.GENERATIONS[piece.generation].label,
            "cloud.google.com/gke-tpu-topology": flags.topology,
        }
        env = {}
        # Between the hosts of a slice, between slices, and jax's own.
        ports = {"tpu": 8471, "slices": 8080, "coordinator": 8476}
    worker = job.worker("--cluster", "gke", "--expect-devices", str(devices), python=flags.python)
    env |= {"PYTHONUNBUFFERED": "1"} | backend.read_pairs("--env", flags.env)
    amount = {resource: str(each)}
    container = {
        "name": "worker",
        "image": flags.image,
        "workingDir": flags.checkout,
        "command": [word.replace("$(", "$$(") for word in worker],  # Kubernetes expands $(NAME)
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
        "resources": {"requests": amount, "limits": dict(amount)},
    }
    metadata, pod = _pod(container, flags, mounts, selector)
    slices = {
        "name": "slice",
        "replicas": flags.slices,
        "template": {
            "spec": {
                "completionMode": "Indexed",
                "completions": hosts,
                "parallelism": hosts,
                "backoffLimit": 0,
                "podFailurePolicy": {"rules": _POD_RULES},
                "template": {"metadata": metadata, "spec": pod},
            }
        },
    }
    about: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "encoders"}}
    if flags.namespace is not None:
        about["namespace"] = flags.namespace
    if flags.accelerator not in GPUS and hosts > 1:  # then one slice is one node pool
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        about["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": about,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {
                "maxRestarts": flags.retries,
                "restartStrategy": "BlockingRecreate",
                "rules": _JOBSET_RULES,
            },
            "replicatedJobs": [slices],
        },
    }


# What makes a Job fail with the reason PodFailurePolicy. Other failures are BackoffLimitExceeded,
# and count towards maxRestarts.
_POD_RULES = [
    {
        "action": "FailJob",
        "onExitCodes": {"containerName": "worker", "operator": "In", "values": values},
    }
    for values in ([2, 3, 4, 5, 6], [STOPPED])
] + [
    {
        "action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
]
# The first rule that fits decides. Kubernetes' message tells mistakes from stops: "Container worker
# for pod x/y failed with exit code 3 matching FailJob rule at index 0".
_JOBSET_RULES = [
    {
        "name": "mistake",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": ["failed with exit code [2-6] "],
    },
    {
        "name": "stopped",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    },
]


def _pod(
    container: dict[str, Any],
    flags: argparse.Namespace,
    mounts: Sequence[Mount],
    selector: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and spec of the pods."""
    volumes = [_volume(f"shared-{index}", mount) for index, mount in enumerate(mounts)]
    paths = [mount.path for mount in mounts]
    if flags.accelerator in GPUS:  # NCCL needs more than the 64 MB that pods have
        volumes.append({"name": "memory", "emptyDir": {"medium": "Memory"}})
        paths.append("/dev/shm")
    container = container | {
        "volumeMounts": [
            {"name": volume["name"], "mountPath": path}
            for volume, path in zip(volumes, paths, strict=True)
        ]
    }
    tolerations = []
    if flags.spot:
        selector = selector | {"cloud.google.com/gke-spot": "true"}
        tolerations = [_toleration("cloud.google.com/gke-spot", "true")]
    if flags.reservation is not None:
        selector = selector | {"cloud.google.com/reservation-name": flags.reservation}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": volumes,
    }
    if not tolerations:
        del pod["tolerations"]
    if flags.service_account is not None:
        pod["serviceAccountName"] = flags.service_account
    if flags.priority_class is not None:
        pod["priorityClassName"] = flags.priority_class
    buckets = any(mount.kind == "bucket" for mount in mounts)
    return {"annotations": {"gke-gcsfuse/volumes": "true"}} if buckets else {}, pod


def _toleration(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


def _volume(name: str, mount: Mount) -> dict[str, Any]:
    if mount.kind == "claim":
        return {"name": name, "persistentVolumeClaim": {"claimName": mount.source}}
    if mount.kind == "nfs":
        server, _, path = mount.source.partition(":")
        return {"name": name, "nfs": {"server": server, "path": path}}
    # No caches: hosts must see at once what others wrote.
    options = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
    attributes = {"bucketName": mount.source, "mountOptions": options}
    csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    return {"name": name, "csi": csi}


def main(arguments: Sequence[str] | None = None) -> int:
    return backend.run(__doc__, arguments, add_flags, render, submit)


if __name__ == "__main__":
    exit_cleanly(main)
