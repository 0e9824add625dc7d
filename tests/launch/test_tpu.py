"""launch.tpu without a TPU: its scripts on a stand-in host, its requests to a stand-in gcloud."""

import contextlib
import io
import re
import shlex
import signal
import subprocess
import time

import pytest
from rendered import assert_documented, assert_reviewed, assert_sound_shell, documented_commands

from encoders.errors import ConfigError
from launch import tpu
from launch.clusters import tpus
from launch.clusters.backend import SubmitError
from launch.flags import Parser
from launch.job import Job

RUN = (
    "--config configs/mae_b16_in1k.py --workdir /mnt/runs/mae --type v5p-512 --zone us-east5-a "
    "--source https://github.com/lab/encoders.git --revision v1.0 --mount gs://lab-runs:/mnt/runs"
)
EXAMPLES = {
    "v5p": f"{RUN} --spot --config.optimizer.lr=1e-4",
    "slices": f"{RUN} --type v6e-256 --slices 4 --reserved --project lab --keep --retries 7 "
    "--source gs://lab-runs/encoders.tar.gz --mount 10.0.0.2:/data:/mnt/data "
    "--label team=vision --gcloud network=training --runtime-version v2-alpha-tpuv6e",
}


def dry_run(arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert tpu.main([*shlex.split(arguments), "--dry-run"]) == 0
    return printed.getvalue()


def flags_of(arguments):
    parser = Parser("")
    for name in ("--config", "--workdir"):
        parser.add_argument(name)
    tpu.add_flags(parser)
    return parser.parse(shlex.split(arguments))


def files_of(arguments, *jobs):
    jobs = jobs or [Job("configs/mae_b16_in1k.py", "/mnt/runs/mae")]
    return tpu.render(jobs, flags_of(arguments))


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_what_was_reviewed(name, rewrite_golden):
    assert_reviewed(f"tpu/{name}.txt", dry_run(EXAMPLES[name]), rewrite_golden)


@pytest.mark.parametrize("name", EXAMPLES)
def test_shellcheck_finds_nothing(name):
    for text in files_of(EXAMPLES[name].replace("--config.optimizer.lr=1e-4", "")).values():
        assert_sound_shell(text)


def test_several_runs_are_several_resources_with_names_of_their_own():
    jobs = [Job("configs/mae_b16_in1k.py", f"/mnt/runs/{d}/1e-4") for d in ("a", "b")]
    assert sorted(files_of(RUN, *jobs)) == [
        "run-1e-4-1.command.sh", "run-1e-4-1.startup.sh",
        "run-1e-4.command.sh", "run-1e-4.startup.sh",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, kind, chips, hosts, canonical",
    [
        ("v4-8", "v4", 4, 1, "v4-8"),
        ("v5p-512", "v5p", 256, 64, "v5p-512"),
        ("v5litepod-8", "v5e", 8, 1, "v5litepod-8"),
        ("v5e-16", "v5e", 16, 4, "v5litepod-16"),
        ("v6e-256", "v6e", 256, 64, "v6e-256"),
    ],
)
def test_an_accelerator_type_says_how_many_chips_and_hosts(text, kind, chips, hosts, canonical):
    found = tpus.from_type(text)
    assert (found.generation, found.chips, found.hosts) == (kind, chips, hosts)
    assert found.accelerator_type == canonical


@pytest.mark.parametrize(
    "change, complaint",
    [
        ("--type v5q-512", "unknown TPU 'v5q'"),
        ("--type v5p-500", "the nearest is v5p-512"),
        ("--type v6e-9", "no v6e slice of '9' chips; the nearest is v6e-8"),
        ("--type v6e", "the nearest is v6e-1"),
        ("--slices 0", "--slices 0: expected 1 or more"),
        ("--zone europe", "expected a zone such as us-east5-a"),
        ("--source ./encoders", "the TPU fetches the code from there"),
        ("--mount lab-runs:/mnt/runs", "expected gs://BUCKET:/PATH or HOST:/SHARE:/PATH"),
        ("--workdir /home/me/mae", "is in no --mount"),
        ("--workdir runs/mae", "must be absolute"),
        ("--label Team=a", "lower-case letters"),
        ("--spot --reserved", "not allowed with"),
        ("--watch --keep", "leave out --keep"),
        ("--zne x", "Did you mean '--zone'"),
    ],
)
def test_a_mistake_is_one_sentence(change, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        tpu.main([*shlex.split(RUN), *change.split(), "--dry-run"])


def test_a_config_that_the_tpu_will_not_have_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(arg=None):\n    return {}\n")
    with pytest.raises(ConfigError, match="look for it in their checkout"):
        tpu.main([*shlex.split(RUN), "--config", str(tmp_path / "mine.py"), "--dry-run"])


def test_without_gcloud_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match="gcloud is not on PATH here; install"):
        tpu.main(shlex.split(RUN))


# --- asking ---------------------------------------------------------------------------------------


@pytest.fixture
def gcloud(monkeypatch, tmp_path):
    """A gcloud that writes down what it is asked; `states` are what it describes, one at a time."""
    (tmp_path / "gcloud").write_text(
        f"""#!/bin/bash
cd {tmp_path} || exit
printf '%s\\n' "$*" >>asked
case $4 in
create) cp "$OLDPWD"/*.startup.sh sent ;;
describe)
  read -r state <states
  sed -i 1d states
  [ "$state" = GONE ] && {{ echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; }}
  echo "{{\\"state\\": {{\\"state\\": \\"$state\\"}}}}" ;;
esac
"""
    )
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("launch.tpu.time.sleep", lambda seconds: None)
    return tmp_path


def test_it_asks_for_what_the_dry_run_shows(gcloud):
    tpu.main(shlex.split(RUN))
    files = files_of(RUN)
    assert (gcloud / "sent").read_text() == files["mae.startup.sh"]
    command = shlex.split(files["mae.command.sh"].replace("\\\n", ""))
    assert (gcloud / "asked").read_text().split() == command[1:]


def watch(arguments, states, gcloud):
    (gcloud / "states").write_text("\n".join(states) + "\n")
    flags = flags_of(arguments)
    tpu.watch(["mae"], files_of(arguments), flags, sleep=lambda seconds: None)
    return [line.split()[3] for line in (gcloud / "asked").read_text().splitlines()]


def test_a_preemption_is_asked_for_again_and_is_no_failure(gcloud, capsys):
    states = ["ACTIVE", *(["SUSPENDED"] * 5), "ACTIVE", "GONE"]
    asked = watch(f"{RUN} --retries 0", states, gcloud)
    assert asked.count("create") == asked.count("delete") == 5
    assert "mae: ended, after 5 preemptions" in capsys.readouterr().out


def test_requests_that_fail_are_counted(gcloud):
    with pytest.raises(SubmitError, match="the request failed 2 times"):
        watch(f"{RUN} --retries 1", ["FAILED", "SUSPENDED", "FAILED"], gcloud)


# --- on the TPU -----------------------------------------------------------------------------------


@pytest.fixture
def host(gcloud, monkeypatch):
    """The start-up script on a stand-in host, whose worker ends with the codes in `plan`."""
    monkeypatch.setattr("launch.clusters.backend._LOCAL", ())
    home, workdir = gcloud / "home", gcloud / "runs/mae"
    (home / "venv/bin").mkdir(parents=True)
    (home / "code").mkdir()
    (workdir / "tpu").mkdir(parents=True)
    (home / "venv/bin/python").write_text(
        f"""#!/bin/bash
[ "$1" = -c ] && {{ printf '%s\\n' "$4" >{workdir}/status; exit; }}
trap 'exit 75' TERM
read -r code <{home}/plan
sed -i 1d {home}/plan
[ "$code" = wait ] && {{ touch {home}/waiting; sleep 60 & wait; }}
exit "$code"
"""
    )
    (home / "venv/bin/python").chmod(0o755)

    def start(*plan, options="--retries 1"):
        (home / "plan").write_text("\n".join(plan) + "\n")
        arguments = RUN.replace("/mnt/runs", str(gcloud / "runs"))
        job = Job("configs/mae_b16_in1k.py", str(workdir))
        script = files_of(f"{arguments} {options}", job)["mae.startup.sh"]
        (home / "start").write_text(script.replace("/opt/encoders", str(home)))
        return subprocess.Popen(["bash", str(home / "start"), "train"], env={
            "PATH": f"{gcloud}:/usr/bin:/bin", "PAUSE": "0"})  # fmt: skip

    start.home, start.workdir, start.asked = home, workdir, gcloud / "asked"
    return start


def test_a_finished_run_gives_its_tpu_back(host):
    host("0").wait(20)
    assert (host.workdir / "tpu/ended").read_text() == "finished\n"
    assert "queued-resources delete mae" in host.asked.read_text()
    assert not (host.workdir / "status").exists()


def test_stops_and_lost_peers_do_not_count_as_failures(host):
    host("75", "8", "75", "9", "75", "8", "0").wait(20)
    assert (host.workdir / "tpu/ended").read_text() == "finished\n"
    (stops,) = host.workdir.glob("tpu/*.stops")
    assert len(stops.read_text().splitlines()) == 3


def test_failures_have_a_limit_and_the_last_one_is_where_status_looks(host):
    host("9", "75", "134", "0").wait(20)
    assert "exit code 134 on " in (host.workdir / "status").read_text()
    assert "after 1 retries" in (host.workdir / "tpu/ended").read_text()
    assert (host.home / "plan").read_text().split() == ["0"]


def test_a_mistake_is_not_tried_again(host):
    host("3", "0").wait(20)
    assert "exit code 3 on " in (host.workdir / "status").read_text()


def test_a_host_stops_when_another_has_ended_the_run(host):
    (host.workdir / "tpu/ended").write_text("exit code 3 on another\n")
    host("0").wait(20)
    assert (host.home / "plan").read_text().split() == ["0"]


def test_a_host_that_is_taken_away_saves_and_keeps_its_request(host):
    process = host("wait", "0")
    deadline = time.monotonic() + 20
    while not (host.home / "waiting").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert list(host.workdir.glob("tpu/*.stops"))
    assert not (host.workdir / "tpu/ended").exists()
    assert not host.asked.exists()
    host("0").wait(20)  # the slice is there again
    assert (host.workdir / "tpu/ended").exists()


def test_the_page_shows_what_the_command_prints():
    assert_documented("tpu.md", dry_run(EXAMPLES["v5p"]))
    assert any(EXAMPLES["v5p"] in command for command in documented_commands("tpu.md"))
