"""Stands in for `launch.local` where a test is about who runs when, not about training.

Writes what a run writes: a loss of (log10(lr) + 2)^2, over three steps of `--config.log.seconds`
each. Goes on from its last step. Fails as `--config.fake_failure` says, at step 1.
"""

import json
import os
import pathlib
import signal
import sys
import time

from encoders.config import load_config, to_json
from launch.flags import Parser, parse

TOTAL = 3


def main():
    parser = Parser(__doc__)
    parser.add_argument("--config"), parser.add_argument("--workdir")
    flags, overrides = parse(parser)
    config = load_config(flags.config, overrides)
    workdir = pathlib.Path(flags.workdir)
    (workdir / "config.json").write_text(to_json(config))
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    path = workdir / "status.json"
    step = json.loads(path.read_text())["step"] if path.exists() else 0
    total = TOTAL * config.duration["steps"] // 6
    loss = config.get("fake_loss", 0.0)
    with (workdir / "starts.txt").open("a") as starts:
        starts.write(f"{step} {time.time()}\n")

    def say(state, message=""):
        content = dict(state=state, step=step, total_steps=total, time=time.time())
        content |= dict(message=message, metrics={"train/loss": loss})
        path.with_suffix(".tmp").write_text(json.dumps(content))
        path.with_suffix(".tmp").replace(path)

    say("running")
    while step < total and not told:
        time.sleep(float(config.log.seconds))
        step += 1
        say("running")
        failure = config.get("fake_failure", "")
        if failure == "machine" and not (workdir / "failed-once").exists():
            (workdir / "failed-once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "numbers":
            say("failed", "step 1: loss nan")
            return 5
        if failure == "words":
            print("error: no data in /x.", flush=True)
            return 3
    say("finished" if step == total else "stopped")
    with (workdir / "starts.txt").open("a") as starts:
        starts.write(f"end {time.time()}\n")
    return 0 if step == total else 75


if __name__ == "__main__":
    sys.exit(main())
