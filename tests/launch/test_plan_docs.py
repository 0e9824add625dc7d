"""The page's counted plans are what the commands print."""

import itertools
import pathlib
import shlex

import pytest

from launch import plan

PAGE = (pathlib.Path(__file__).parents[2] / "docs/launch/plan.md").read_text(encoding="utf-8")
BLOCKS = PAGE.split("```\n")[1::2]
COUNTED = [
    (command.strip(), output)
    for command, output in itertools.pairwise(BLOCKS)
    if command.startswith("python -m launch.plan") and "--devices" in command
]


@pytest.mark.parametrize("command, output", COUNTED)
def test_the_page_shows_what_the_command_prints(command, output, capsys):
    plan.main(shlex.split(command)[3:])
    assert capsys.readouterr().out == output


def test_the_page_has_counted_plans():
    assert len(COUNTED) >= 2
