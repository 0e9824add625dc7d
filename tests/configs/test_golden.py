"""Every shipped experiment, as text: a review sees what a change did to each of them."""

import difflib

import pytest
import shipped

from encoders.training.describe import describe
from encoders.training.experiment import Experiment

GOLDEN = shipped.ROOT / "tests/golden/configs"


# Of Python 3.11's library: another Python has another number, and counting takes half a minute.
DOCUMENTED_FUNCTIONS = 4_564


def rendered(spec: str) -> str:
    experiment = Experiment(shipped.load(spec))
    if experiment.config["data"]["source"]["name"] == "python_code":
        experiment.source = range(DOCUMENTED_FUNCTIONS)
    return describe(experiment)


def path_of(spec: str):
    return GOLDEN / (spec.replace(":", "-").replace(",", "-") + ".txt")


@pytest.mark.parametrize("spec", shipped.SPECS)
def test_the_experiment_is_what_was_reviewed(spec, rewrite_golden):
    text, path = rendered(spec), path_of(spec)
    if rewrite_golden:
        path.write_text(text, encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    diff = "\n".join(
        difflib.unified_diff(
            before.splitlines(), text.splitlines(), "reviewed", "now", lineterm="", n=0
        )
    )
    assert before == text, f"run `make golden` and review the change:\n{diff}"


def test_there_is_no_text_without_an_experiment():
    assert {p.name for p in GOLDEN.glob("*.txt")} == {path_of(s).name for s in shipped.SPECS}


@pytest.mark.parametrize("name", shipped.NAMES)
def test_the_docstring_says_where_it_comes_from_and_what_it_measured(name):
    docstring = (
        (shipped.ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    )
    for heading in ("Paper:", "Command:", "Cost:", "Published:", "Measured:"):
        assert f"\n{heading}" in docstring
