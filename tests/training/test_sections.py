"""What a config's sections refuse by themselves; other tests have what they are for."""

import re

import pytest

from encoders.config import construct
from encoders.errors import ConfigError
from encoders.training.sections import Sections

NEEDED = {key: {} for key in ("model", "objective", "preprocessing", "optimizer", "duration")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ema": 1.0}, "ema: expected a share from 0 and below 1, got 1.0."),
        ({"ema": -0.5}, "ema: expected a share from 0"),
        ({"checkpoint": {"keep_last": 0}}, "checkpoint.keep_last: expected 1 or more, got 0."),
        ({"evaluators": {"knn": 3}}, "evaluators.knn: expected a section, got 3."),
        (
            {"checkpoint": {"best_metric": "eval/kn/accuracy"}, "evaluators": {"knn": {}}},
            "got 'eval/kn/accuracy'. Did you mean 'knn'?",
        ),
        ({"checkpoint": {"best_metric": "accuracy"}}, "checkpoint.best_metric: expected eval/"),
        ({"log": {"profile_steps": (5, 3)}}, "log.profile_steps: expected a step and a later one"),
    ],
)
def test_numbers_out_of_range_are_named(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        construct(Sections, {**NEEDED, "data": {"source": {}}, "batch_size": 1, **fields}, "config")
