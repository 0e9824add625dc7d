"""What launchers render: compared with what was reviewed, and checked as shell."""

import difflib
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/launch"


def assert_reviewed(name: str, text: str, rewrite: bool) -> None:
    """Compares with tests/golden/launch/<name>, or writes it."""
    path = GOLDEN / name
    if rewrite:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    diff = "\n".join(
        difflib.unified_diff(before.splitlines(), text.splitlines(), "reviewed", "now", n=1)
    )
    assert before == text, f"run `pytest tests/launch --rewrite-golden` and review it:\n{diff}"


def assert_documented(page: str, *outputs: str) -> None:
    """docs/launch/<page> shows these texts, whole."""
    text = (ROOT / "docs/launch" / page).read_text(encoding="utf-8")
    for output in outputs:
        assert output in text, f"docs/launch/{page} shows another output than the command prints"


def documented_commands(page: str) -> list[str]:
    """The commands of a page, each on one line."""
    text = (ROOT / "docs/launch" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line) for line in re.findall(r"^python -m .*$", text, re.M)]


def assert_sound_shell(script: str) -> None:
    """shellcheck has nothing to say, not even about style."""
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck is missing: pip install -e .[test]"
    done = subprocess.run(
        [program, "--shell=bash", "--severity=style", "-"],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
