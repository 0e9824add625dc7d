"""A JobSet manifest, checked field by field before a cluster sees it.

The schema has only the fields that launch.gke writes. Sources: jobset.x-k8s.io/v1alpha2
(api/jobset/v1alpha2/jobset_types.go and its webhook, JobSet 0.10), the Job and Pod of Kubernetes
(batch/v1, v1), and the rules for names and labels of its "Object Names" and "Labels" pages.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from encoders.errors import ConfigError, nearest

Check = Callable[[Any], str | None]  # what was expected, or None


@dataclasses.dataclass(frozen=True)
class Fields:
    """A mapping with these fields; those in `required` must be there."""

    fields: Mapping[str, Any]
    required: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Each:
    """A list of at least one of these."""

    item: Any


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A mapping from any key that passes the first check to values that pass the second."""

    key: Check
    value: Check


def check_manifest(manifest: Any) -> None:
    """Checks every field, and what fields say of each other.

    Args:
      manifest: a JobSet as plain dicts and lists.

    Raises:
      ConfigError: the first mistake: where it is, what was expected, what is there.
    """
    _check(manifest, _JOBSET, "")
    for where, complaint in _contradictions(manifest):
        raise ConfigError(f"JobSet {where}: {complaint}.")


def _check(value: Any, schema: Any, where: str) -> None:
    if isinstance(schema, Fields | Pairs) and not isinstance(value, Mapping):
        raise _wrong(where, "a mapping", value)
    if isinstance(schema, Fields):
        for name in value:
            if name not in schema.fields:
                near = nearest(name, schema.fields)
                raise ConfigError(f"JobSet {_join(where, name)}: unknown field.{near}")
        for name in schema.required:
            if name not in value:
                raise ConfigError(f"JobSet {_join(where, name)}: missing.")
        for name, inner in value.items():
            _check(inner, schema.fields[name], _join(where, name))
    elif isinstance(schema, Pairs):
        for name, inner in value.items():
            if expected := schema.key(name):
                raise _wrong(f"{where}, a key", expected, name)
            if expected := schema.value(inner):
                raise _wrong(_join(where, name), expected, inner)
    elif isinstance(schema, Each):
        if not isinstance(value, list) or not value:
            raise _wrong(where, "a list with something in it", value)
        for index, inner in enumerate(value):
            _check(inner, schema.item, f"{where}[{index}]")
    elif expected := schema(value):
        raise _wrong(where, expected, value)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def _wrong(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"JobSet {where}: expected {expected}, got {value!r}.")


# --- values ---------------------------------------------------------------------------------------


def _matches(pattern: str, expected: str, longest: int = 253) -> Check:
    def check(value: Any) -> str | None:
        good = isinstance(value, str) and len(value) <= longest and re.fullmatch(pattern, value)
        return None if good else expected

    return check


def _whole(least: int, most: int = 2**31 - 1) -> Check:
    def check(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if good else f"a whole number from {least} to {most}"

    return check


def _one_of(*choices: Any) -> Check:
    def check(value: Any) -> str | None:
        good = any(value == choice and type(value) is type(choice) for choice in choices)
        return None if good else " or ".join(map(repr, choices))

    return check


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"


# RFC 1035, which Jobs and their Services need: RFC 1123 but for a digit at the start.
_LABEL_1035 = _matches(
    r"[a-z]([a-z0-9-]*[a-z0-9])?",
    "at most 63 lower-case letters, digits and '-', beginning with a letter",
    63,
)
_LABEL_1123 = _matches(
    r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", "at most 63 lower-case letters, digits and '-'", 63
)
_SUBDOMAIN = _matches(
    r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "lower-case letters, digits, '-' and '.', at most 253"
)
_KEY = _matches(
    r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?",
    "a label key: [prefix/]name of at most 63 letters, digits, '-', '_' and '.'",
)
_LABEL_VALUE = _matches(
    r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?",
    "a label value: at most 63 letters, digits, '-', '_' and '.'",
    63,
)
_QUANTITY = _matches(
    r"\d+(\.\d+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", "a quantity such as '4', '500m' or '64Gi'"
)
_PATH = _matches(r"/[^:\x00-\x1f]*", "an absolute path without ':'", 4096)
_ENV_NAME = _matches(r"[A-Za-z_.-][A-Za-z0-9_.-]*", "the name of an environment variable")
_PORT_NAME = _matches(
    r"(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?", "at most 15 lower-case letters, digits, '-'", 15
)
_IMAGE = _matches(
    r"[a-z0-9][a-zA-Z0-9._:/-]*(@sha256:[0-9a-f]{64})?", "an image such as host/project/name:tag"
)
_RULE_NAME = _matches(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", "a name of letters and digits")


def _regex(value: Any) -> str | None:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return "a regular expression"
    return None


# --- the schema -----------------------------------------------------------------------------------

_METADATA = Fields(
    dict(
        name=_LABEL_1035,
        namespace=_LABEL_1123,
        labels=Pairs(_KEY, _LABEL_VALUE),
        annotations=Pairs(_KEY, _text),
    )
)
_CONTAINER = Fields(
    dict(
        name=_LABEL_1123,
        image=_IMAGE,
        workingDir=_PATH,
        command=Each(_text),
        env=Each(Fields(dict(name=_ENV_NAME, value=_text), ("name", "value"))),
        ports=Each(
            Fields(dict(name=_PORT_NAME, containerPort=_whole(1, 65535)), ("containerPort",))
        ),
        resources=Fields(
            dict(requests=Pairs(_KEY, _QUANTITY), limits=Pairs(_KEY, _QUANTITY)), ("limits",)
        ),
        volumeMounts=Each(Fields(dict(name=_LABEL_1123, mountPath=_PATH), ("name", "mountPath"))),
    ),
    ("name", "image", "command", "resources"),
)
_VOLUME = Fields(
    dict(
        name=_LABEL_1123,
        csi=Fields(
            dict(driver=_SUBDOMAIN, volumeAttributes=Pairs(_KEY, _text)),
            ("driver", "volumeAttributes"),
        ),
        nfs=Fields(dict(server=_SUBDOMAIN, path=_PATH), ("server", "path")),
        persistentVolumeClaim=Fields(dict(claimName=_SUBDOMAIN), ("claimName",)),
        emptyDir=Fields(dict(medium=_one_of("Memory"), sizeLimit=_QUANTITY)),
    ),
    ("name",),
)
_TOLERATION = Fields(
    dict(
        key=_KEY,
        operator=_one_of("Equal", "Exists"),
        value=_LABEL_VALUE,
        effect=_one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
    )
)
_POD = Fields(
    dict(
        restartPolicy=_one_of("Never", "OnFailure"),
        terminationGracePeriodSeconds=_whole(0),
        serviceAccountName=_SUBDOMAIN,
        priorityClassName=_SUBDOMAIN,
        nodeSelector=Pairs(_KEY, _LABEL_VALUE),
        tolerations=Each(_TOLERATION),
        containers=Each(_CONTAINER),
        volumes=Each(_VOLUME),
    ),
    ("restartPolicy", "containers"),
)
_POD_FAILURE_RULE = Fields(
    dict(
        action=_one_of("FailJob", "Ignore", "Count"),
        onExitCodes=Fields(
            dict(
                containerName=_LABEL_1123,
                operator=_one_of("In", "NotIn"),
                values=Each(_whole(1, 255)),
            ),
            ("operator", "values"),
        ),
        onPodConditions=Each(
            Fields(
                dict(type=_one_of("DisruptionTarget"), status=_one_of("True", "False", "Unknown")),
                ("type", "status"),
            )
        ),
    ),
    ("action",),
)
_JOB = Fields(
    dict(
        completionMode=_one_of("Indexed"),
        completions=_whole(1),
        parallelism=_whole(1),
        backoffLimit=_whole(0),
        podFailurePolicy=Fields(dict(rules=Each(_POD_FAILURE_RULE)), ("rules",)),
        template=Fields(dict(metadata=_METADATA, spec=_POD), ("spec",)),
    ),
    ("completionMode", "completions", "parallelism", "backoffLimit", "template"),
)
_FAILURE_RULE = Fields(
    dict(
        name=_RULE_NAME,
        action=_one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
        onJobFailureReasons=Each(
            _one_of(
                "PodFailurePolicy",
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "MaxFailedIndexesExceeded",
                "FailedIndexes",
            )
        ),
        onJobFailureMessagePatterns=Each(_regex),
        targetReplicatedJobs=Each(_LABEL_1035),
    ),
    ("name", "action"),
)
_JOBSET = Fields(
    dict(
        apiVersion=_one_of("jobset.x-k8s.io/v1alpha2"),
        kind=_one_of("JobSet"),
        metadata=dataclasses.replace(_METADATA, required=("name",)),
        spec=Fields(
            dict(
                network=Fields(
                    dict(
                        enableDNSHostnames=_flag,
                        subdomain=_LABEL_1035,
                        publishNotReadyAddresses=_flag,
                    )
                ),
                failurePolicy=Fields(
                    dict(
                        maxRestarts=_whole(0),
                        restartStrategy=_one_of("Recreate", "BlockingRecreate"),
                        rules=Each(_FAILURE_RULE),
                    )
                ),
                ttlSecondsAfterFinished=_whole(0),
                replicatedJobs=Each(
                    Fields(
                        dict(
                            name=_LABEL_1035,
                            replicas=_whole(1),
                            template=Fields(dict(metadata=_METADATA, spec=_JOB), ("spec",)),
                        ),
                        ("name", "template"),
                    )
                ),
            ),
            ("replicatedJobs",),
        ),
    ),
    ("apiVersion", "kind", "metadata", "spec"),
)


# --- what fields say of each other ----------------------------------------------------------------


def _contradictions(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    replicated = spec["replicatedJobs"]
    names = [job["name"] for job in replicated]
    yield from _doubled("spec.replicatedJobs", names)
    for index, rule in enumerate(spec.get("failurePolicy", {}).get("rules", ())):
        for target in rule.get("targetReplicatedJobs", ()):
            if target not in names:
                where = f"spec.failurePolicy.rules[{index}].targetReplicatedJobs"
                yield where, f"there is no replicated job '{target}'.{nearest(target, names)[:-1]}"
    for index, job in enumerate(replicated):
        where = f"spec.replicatedJobs[{index}]"
        inner = job["template"]["spec"]
        longest = f"{name}-{job['name']}-{job.get('replicas', 1) - 1}-{inner['completions'] - 1}"
        if len(longest) + len("-abcde") > 63:
            yield (
                "metadata.name",
                f"'{name}' is too long: pods would be called '{longest}-abcde', and 63 characters "
                f"are allowed",
            )
        yield from _job_contradictions(inner, f"{where}.template.spec")


def _job_contradictions(job: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    pod, inside = job["template"]["spec"], f"{where}.template.spec"
    if job["parallelism"] != job["completions"]:
        yield (
            f"{where}.parallelism",
            f"expected {job['completions']}, as completions: all processes of a run run together",
        )
    containers = [container["name"] for container in pod["containers"]]
    for index, rule in enumerate(job.get("podFailurePolicy", {}).get("rules", ())):
        at = f"{where}.podFailurePolicy.rules[{index}]"
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield at, "expected either onExitCodes or onPodConditions"
        codes = rule.get("onExitCodes", {})
        if codes.get("containerName", containers[0]) not in containers:
            yield f"{at}.onExitCodes.containerName", f"no container '{codes['containerName']}'"
        if codes and codes["values"] != sorted(set(codes["values"])):
            yield f"{at}.onExitCodes.values", "expected rising numbers, each once"
    if "podFailurePolicy" in job and pod["restartPolicy"] != "Never":
        yield f"{inside}.restartPolicy", "expected 'Never', which a podFailurePolicy needs"
    volumes = [volume["name"] for volume in pod.get("volumes", ())]
    yield from _doubled(f"{inside}.volumes", volumes)
    yield from _doubled(f"{inside}.containers", containers)
    for index, volume in enumerate(pod.get("volumes", ())):
        if len(volume) != 2:
            yield f"{inside}.volumes[{index}]", "expected a name and exactly one kind of volume"
    for index, container in enumerate(pod["containers"]):
        at = f"{inside}.containers[{index}]"
        mounts = container.get("volumeMounts", ())
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"{at}.volumeMounts", f"no volume '{mount['name']}'"
        yield from _doubled(f"{at}.volumeMounts", [mount["mountPath"] for mount in mounts])
        yield from _doubled(f"{at}.env", [each["name"] for each in container.get("env", ())])
        ports = [port["containerPort"] for port in container.get("ports", ())]
        yield from _doubled(f"{at}.ports", ports)
        limits, requests = (container["resources"].get(k, {}) for k in ("limits", "requests"))
        for device in ("google.com/tpu", "nvidia.com/gpu"):
            if requests.get(device, limits.get(device)) != limits.get(device):
                yield f"{at}.resources", f"{device} must be the same in requests and limits"


def _doubled(where: str, values: list[Any]) -> Iterator[tuple[str, str]]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield where, f"'{value}' is there twice"
