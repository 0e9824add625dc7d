"""Parts of a text experiment that do not fit together: one sentence, and the exit code of its kind.

Whatever can be told before the first step is told then, and nothing is compiled here.
"""

import pathlib

import jax
import pytest

from configs import demo_text
from encoders.errors import ConfigError, DataError, exit_cleanly
from encoders.training.experiment import Experiment

OTHER = pathlib.Path(__file__).parents[1] / "golden" / "tokenizers" / "bert_uncased"


def start(section, fields):
    """The demo with other fields, as far as counting its parameters and opening its data."""
    config = demo_text.get_config()
    config[section].update(fields)
    experiment = Experiment(config, devices=jax.devices()[:1])
    return len(experiment.source) if experiment.param_shapes else None


@pytest.mark.parametrize(
    "section, fields, kind, message",
    [
        ("preprocessing", {"tokenizer": str(OTHER)}, DataError, "made with another tokenizer than"),
        ("model", {"vocab_size": 6143}, ConfigError, "6143 is less than the 6144 ids of"),
        ("model", {"max_length": 50}, ConfigError, "64 tokens are more than the 50 that there"),
        ("preprocessing", {"max_length": 2}, ConfigError, "expected room for three tokens, got 2"),
        (
            "objective",
            {"masking": {"rate": 0.001}},
            ConfigError,
            "objective.masking.rate: 0.001 of 64 tokens is none; 0.01562 or more chooses one",
        ),
        ("objective", {"masking": {"rate": 0.0}}, ConfigError, "expected a share above 0"),
    ],
)
def test_what_does_not_fit_together(section, fields, kind, message, capsys):
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(lambda: start(section, fields))
    assert caught.value.code == kind.exit_code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert said.endswith(".")
    assert message in said
