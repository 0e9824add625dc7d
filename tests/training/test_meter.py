from hypothesis import given
from hypothesis import strategies as st

from encoders.training.meter import stragglers


def test_a_straggler_needs_more_than_its_peers_and_enough_to_matter():
    assert stragglers({0: 0.01, 1: 0.5, 2: 0.02, 3: 0.01}, step_seconds=1.0) == [1]
    assert stragglers({0: 0.01, 1: 0.05, 2: 0.02, 3: 0.01}, step_seconds=1.0) == []
    assert stragglers({0: 0.4, 1: 0.01}, step_seconds=1.0) == [0]
    assert stragglers({0: 0.9, 1: 0.1, 2: 0.1, 3: 0.8, 4: 0.1}, step_seconds=1.0) == [0, 3]


@given(st.floats(0, 10), st.integers(2, 9), st.floats(0.01, 10))
def test_equals_are_no_stragglers(own, count, step):
    assert stragglers(dict.fromkeys(range(count), own), step) == []
