"""launch.gke without a cluster: the manifests, and what the check of every field refuses."""

import contextlib
import copy
import io
import re
import shlex

import pytest
import yaml
from rendered import assert_documented, assert_reviewed, documented_commands

from encoders.errors import ConfigError
from launch import gke
from launch.clusters import tpus
from launch.clusters.backend import SubmitError
from launch.clusters.jobset import check_manifest
from launch.flags import Parser
from launch.job import Job

RUN = (
    "--config configs/mae_b16_in1k.py --workdir /mnt/runs/mae --topology 8x8x8 "
    "--image us-docker.pkg.dev/lab/ml/encoders:v1 --mount gs://lab-runs:/mnt/runs"
)
EXAMPLES = {
    "v5p": f"{RUN} --spot --config.optimizer.lr=1e-4",
    "slices": f"{RUN} --accelerator v6e --topology 16x16 --slices 4 --reservation lab "
    "--mount 10.0.0.2:/data:/mnt/data --mount claim://cache:/mnt/cache --service-account trainer "
    "--namespace vision --priority-class high --retries 7 --env HF_HOME=/mnt/cache/hf",
    "gpu": RUN.replace("--topology 8x8x8", "--accelerator h100 --nodes 4"),
}


def dry_run(arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert gke.main([*shlex.split(arguments), "--dry-run"]) == 0
    return printed.getvalue()


def flags_of(arguments):
    parser = Parser("")
    for name in ("--config", "--workdir"):
        parser.add_argument(name)
    gke.add_flags(parser)
    return parser.parse(shlex.split(arguments))


def manifest_of(arguments):
    return yaml.safe_load(dry_run(arguments).partition("\n")[2])


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def worker_of(manifest):
    return job_of(manifest)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_what_was_reviewed(name, rewrite_golden):
    assert_reviewed(f"gke/{name}.txt", dry_run(EXAMPLES[name]), rewrite_golden)


# --- structure ------------------------------------------------------------------------------------


def test_a_slice_is_a_job_and_a_host_is_a_pod():
    manifest = manifest_of(EXAMPLES["slices"])
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = job_of(manifest)
    assert replicated["replicas"] == 4
    assert job["completions"] == job["parallelism"] == 64
    assert job["completionMode"] == "Indexed"
    assert worker_of(manifest)["resources"]["limits"] == {"google.com/tpu": "4"}
    selector = job["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    assert selector["cloud.google.com/gke-tpu-topology"] == "16x16"
    command = worker_of(manifest)["command"]
    assert command[command.index("--expect-devices") + 1] == "1024"


def test_gpu_pods_know_their_coordinator_by_its_name_in_the_network():
    manifest = manifest_of(EXAMPLES["gpu"])
    env = {each["name"]: each["value"] for each in worker_of(manifest)["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"] == "mae-slice-0-0.mae:1234"
    assert env["JAX_NUM_PROCESSES"] == "4"
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "mae"}
    assert worker_of(manifest)["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def outcome(manifest, exit_code=None, disrupted=False):
    """What Kubernetes and JobSet do when a pod ends, by the rules of the manifest."""
    job, policy = job_of(manifest), manifest["spec"]["failurePolicy"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        if exit_code in rule.get("onExitCodes", {}).get("values", ()):
            said = f"Container worker for pod ns/mae-slice-0-3-x failed with exit code {exit_code}"
        elif disrupted and "onPodConditions" in rule:
            said = "Pod ns/mae-slice-0-3-x has condition DisruptionTarget"
        else:
            continue
        reason, message = "PodFailurePolicy", f"{said} matching FailJob rule at index {index}"
        break
    for rule in policy["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"  # JobSet's own default


@pytest.mark.parametrize(
    "ending, action",
    [
        (dict(exit_code=75), "RestartJobSetAndIgnoreMaxRestarts"),
        (dict(exit_code=143, disrupted=True), "RestartJobSetAndIgnoreMaxRestarts"),
        (dict(disrupted=True), "RestartJobSetAndIgnoreMaxRestarts"),
        *[(dict(exit_code=code), "FailJobSet") for code in (2, 3, 4, 5, 6)],
        *[(dict(exit_code=code), "RestartJobSet") for code in (1, 7, 8, 9, 134, 137)],
    ],
)
def test_preemption_is_no_failure_mistakes_end_it_and_the_rest_counts(ending, action):
    assert outcome(manifest_of(EXAMPLES["v5p"]), **ending) == action


def test_kubernetes_expands_nothing_in_the_command():
    job = Job("c.py", "/mnt/runs/mae", ("init_from=$(HOME)",))
    manifest = gke.make_manifest("mae", job, flags_of(RUN), [])
    assert worker_of(manifest)["command"][-1] == "--config.init_from=$$(HOME)"


# --- the check of every field ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def good():
    return {name: manifest_of(arguments) for name, arguments in EXAMPLES.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_rendered_passes(good, name):
    check_manifest(good[name])


SPEC, REPLICATED = "spec", "spec.replicatedJobs.0"
JOB = f"{REPLICATED}.template.spec"
POD = f"{JOB}.template.spec"
WORKER = f"{POD}.containers.0"


def put(tree, path, value):
    """Sets a field, renames it ('<new name>'), or removes it (None)."""
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    last = int(last) if isinstance(tree, list) else last
    if isinstance(value, str) and re.fullmatch("<.*>", value):
        tree[value[1:-1]] = tree.pop(last)
    elif value is None:
        del tree[last]
    else:
        tree[last] = value


@pytest.mark.parametrize(
    "path, value, complaint",
    [
        ("kind", "Jobset", "kind: expected 'JobSet', got 'Jobset'"),
        ("apiVersion", "jobset.x-k8s.io/v1", "apiVersion: expected 'jobset.x-k8s.io/v1alpha2'"),
        ("spec", "<specs>", "specs: unknown field. Did you mean 'spec'?"),
        ("metadata.name", "Mae", "metadata.name: expected at most 63 lower-case letters"),
        ("metadata.name", "m" * 48, "is too long: pods would be called"),
        ("metadata.name", None, "metadata.name: missing"),
        ("metadata.labels", {"a b": "c"}, "metadata.labels, a key: expected a label key"),
        ("metadata.labels", {"a": "x" * 64}, "metadata.labels.a: expected a label value"),
        (f"{SPEC}.network.subdomain", "1x", "spec.network.subdomain: expected"),
        (f"{SPEC}.network.enableDNSHostnames", "yes", "expected true or false, got 'yes'"),
        (f"{SPEC}.failurePolicy", "<failurePolice>", "Did you mean 'failurePolicy'?"),
        (f"{SPEC}.failurePolicy.maxRestarts", -1, "expected a whole number from 0"),
        (f"{SPEC}.failurePolicy.maxRestarts", True, "expected a whole number from 0"),
        (f"{SPEC}.failurePolicy.restartStrategy", "Blocking", "'Recreate' or 'BlockingRecreate'"),
        (f"{SPEC}.failurePolicy.rules.0.action", "Fail", "rules[0].action: expected 'FailJobSet'"),
        (f"{SPEC}.failurePolicy.rules.0.onJobFailureReasons", [], "a list with something in it"),
        (f"{SPEC}.failurePolicy.rules.0.onJobFailureReasons", ["Podfailure"], "Reasons[0]:"),
        (f"{SPEC}.failurePolicy.rules.0.onJobFailureMessagePatterns", ["("], "a regular expressi"),
        (f"{SPEC}.failurePolicy.rules.0.targetReplicatedJobs", ["slices"], "Did you mean 'slice'"),
        (f"{SPEC}.replicatedJobs", [], "spec.replicatedJobs: expected a list with something in"),
        (f"{REPLICATED}.replicas", 0, "replicas: expected a whole number from 1"),
        (f"{REPLICATED}.name", "Slice", "replicatedJobs[0].name: expected"),
        (f"{JOB}.completions", "128", "completions: expected a whole number"),
        (f"{JOB}.parallelism", 64, "parallelism: expected 128, as completions"),
        (f"{JOB}.backoffLimit", "<backofLimit>", "Did you mean 'backoffLimit'?"),
        (f"{JOB}.completionMode", "NonIndexed", "completionMode: expected 'Indexed'"),
        (f"{JOB}.podFailurePolicy.rules.0.action", "Fail", "expected 'FailJob' or 'Ignore'"),
        (f"{JOB}.podFailurePolicy.rules.0.onExitCodes.values", [0], "number from 1 to 255, got 0"),
        (f"{JOB}.podFailurePolicy.rules.0.onExitCodes.values", [3, 3], "rising numbers"),
        (f"{JOB}.podFailurePolicy.rules.0.onExitCodes.containerName", "main", "no container 'ma"),
        (f"{JOB}.podFailurePolicy.rules.0.onExitCodes", None, "either onExitCodes or onPodCond"),
        (f"{JOB}.podFailurePolicy.rules.2.onPodConditions.0.status", True, "'True' or 'False'"),
        (f"{POD}.restartPolicy", "OnFailure", "expected 'Never', which a podFailurePolicy needs"),
        (f"{POD}.restartPolicy", "Always", "restartPolicy: expected 'Never' or 'OnFailure'"),
        (f"{POD}.terminationGracePeriodSeconds", 1.5, "expected a whole number from 0"),
        (f"{POD}.nodeSelector", {"cloud.google.com/x": True}, "expected a label value"),
        (f"{POD}.nodeSelector", "v5p", "nodeSelector: expected a mapping, got 'v5p'"),
        (f"{POD}.tolerations.0.effect", "NoScheduling", "effect: expected 'NoSchedule'"),
        (f"{POD}.volumes.0.name", "other", "volumeMounts: no volume 'shared-0'"),
        (f"{POD}.volumes.0.nfs", {"server": "a", "path": "/b"}, "exactly one kind of volume"),
        (f"{POD}.volumes.0.csi.driver", None, "csi.driver: missing"),
        (f"{WORKER}.image", "", "image: expected an image"),
        (f"{WORKER}.image", "lab/encoders v1", "image: expected an image"),
        (f"{WORKER}.workingDir", "encoders", "workingDir: expected an absolute path"),
        (f"{WORKER}.command", "python3 -m launch.worker", "command: expected a list"),
        (f"{WORKER}.command.0", 3, "command[0]: expected a string, got 3"),
        (f"{WORKER}.env.0.value", 1, "env[0].value: expected a string, got 1"),
        (f"{WORKER}.env.0.name", "1 A", "the name of an environment variable"),
        (f"{WORKER}.ports.0.containerPort", 65536, "number from 1 to 65535, got 65536"),
        (f"{WORKER}.ports.1.containerPort", 8471, "'8471' is there twice"),
        (f"{WORKER}.ports.0.name", "a-name-longer-than-it", "at most 15"),
        (f"{WORKER}.resources.limits", {"google.com/tpu": 4}, "a quantity such as"),
        (f"{WORKER}.resources.limits", {"google.com/tpu": "8"}, "the same in requests and limits"),
        (f"{WORKER}.volumeMounts.0.mountPath", "mnt", "mountPath: expected an absolute path"),
    ],
)
def test_a_wrong_field_is_one_sentence_that_says_where(good, path, value, complaint):
    manifest = copy.deepcopy(good["v5p"])
    put(manifest, path, value)
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        check_manifest(manifest)
    assert str(caught.value).startswith("JobSet ")
    assert "\n" not in str(caught.value)


def leaves(tree, path=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key), value
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_single_field_is_checked(good, name):
    """None passes nowhere, and neither does a misspelling of any name."""
    free = ("labels", "annotations", "nodeSelector", "volumeAttributes", "requests", "limits")
    for path, value in list(leaves(good[name])):
        changed = copy.deepcopy(good[name])
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = None
        with pytest.raises(ConfigError):
            check_manifest(changed)
        if isinstance(path[-1], str) and not (len(path) > 1 and path[-2] in free):
            del parent[path[-1]]
            parent[path[-1] + "s_"] = value
            with pytest.raises(ConfigError, match="unknown field"):
                check_manifest(changed)


# --- flags and kubectl ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accelerator, topology, hosts, each",
    [
        ("v5p", "2x2x1", 1, 4),
        ("v5p", "8x8x8", 128, 4),
        ("v4", "4x4x8", 32, 4),
        ("v5e", "1x1", 1, 1),
        ("v6e", "2x4", 1, 8),
        ("v6e", "4x4", 4, 4),
    ],
)
def test_a_topology_says_how_many_hosts_with_how_many_chips(accelerator, topology, hosts, each):
    piece = tpus.from_topology(accelerator, topology)
    assert (piece.hosts, piece.chips_per_host) == (hosts, each)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ("--accelerator v5q", "--accelerator v5q: unknown. Did you mean"),
        ("--topology 8x8", "a v5p slice has 3 dimensions; for this one choose --accelerator v5e"),
        ("--topology 8x8x6", "v5p has no such slice; it has 2x2x1, 2x2x2"),
        ("--topology 8x4x4", "multiples of 4 in rising order"),
        ("--topology 64x64x64", "of up to 6144 chips"),
        ("--topology big", "expected numbers of chips"),
        ("--accelerator v6e --topology 3x3", "v6e has no such slice"),
        ("--nodes 4", "--accelerator v5p needs --topology"),
        ("--accelerator h100", "needs --nodes N, and no --topology"),
        ("--slices 0", "--slices 0: expected 1 or more"),
        ("--workdir /home/mae", "is in no --mount"),
        ("--workdir mae", "must be absolute"),
        ("--mount gs://lab-runs", "expected gs://BUCKET:/PATH"),
        ("--image Lab/Encoders", "containers[0].image: expected an image"),
        ("--namespace Vision", "metadata.namespace: expected"),
        ("--reservation a/b", "reservation-name: expected a label value"),
        ("--env 1X=2", "env[1].name: expected"),
        ("--mount 10.0.0.2:/x:/mnt/runs", "'/mnt/runs' is there twice"),
    ],
)
def test_a_mistake_is_one_sentence(change, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        gke.main([*shlex.split(RUN), *change.split(), "--dry-run"])


def test_several_runs_are_several_jobsets():
    jobs = [Job("configs/mae_b16_in1k.py", f"/mnt/runs/{name}") for name in ("a", "b")]
    assert list(gke.render(jobs, flags_of(RUN))) == ["a.yaml", "b.yaml"]


def test_it_creates_what_the_dry_run_shows(monkeypatch, tmp_path):
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\ncat >{tmp_path}/sent\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gke.main(shlex.split(RUN))
    assert (tmp_path / "asked").read_text() == "create -f -\n"
    assert (tmp_path / "sent").read_text() == dry_run(RUN).partition("\n")[2]


def test_without_kubectl_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match="kubectl is not on PATH here; install it"):
        gke.main(shlex.split(RUN))


def test_the_page_shows_what_the_command_prints():
    assert_documented("gke.md", dry_run(EXAMPLES["v5p"]))
    assert any(EXAMPLES["v5p"] in command for command in documented_commands("gke.md"))
