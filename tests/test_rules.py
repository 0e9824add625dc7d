"""The rules engine against its definition: first match wins, whole paths, nothing unmatched."""

import re

import flax.struct
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest

from encoders import rules
from encoders.errors import ConfigError


@flax.struct.dataclass
class Point:
    x: np.ndarray
    y: dict


TREE = {
    "b": [np.zeros(1), (np.zeros(2), np.zeros(3))],
    "a": Point(x=np.zeros(4), y={"k/w": np.zeros(5)}),
    "c": optax.ScaleByAdamState(count=np.zeros(6), mu={"p": np.zeros(7)}, nu=None),
}


def test_paths_name_every_kind_of_node_in_the_order_of_the_leaves():
    paths = rules.leaf_paths(TREE)
    assert paths == ["a/x", "a/y/k/w", "b/0", "b/1/0", "b/1/1", "c/count", "c/mu/p"]
    sizes = [leaf.size for leaf in jax.tree.leaves(TREE)]
    assert sizes == [4, 5, 1, 2, 3, 6, 7]
    seen = rules.map_with_path(lambda path, x, y: f"{path}:{x.size + y.size}", TREE, TREE)
    assert jax.tree.structure(seen) == jax.tree.structure(TREE)
    expected = [f"{path}:{2 * size}" for path, size in zip(paths, sizes, strict=True)]
    assert jax.tree.leaves(seen) == expected


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
PATTERNS = st.lists(
    st.sampled_from(["a", "b", "c", "/", ".", ".*", "[ab]", "(a|b/c)"]), min_size=1, max_size=4
).map("".join)


@hypothesis.given(
    patterns=st.lists(PATTERNS, min_size=1, max_size=4),
    paths=st.lists(NAMES, min_size=1, max_size=6, unique=True),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_match_is_first_whole_match_and_every_rule_must_match(patterns, paths):
    table = [(pattern, index) for index, pattern in enumerate(patterns)]
    hits = {path: [i for i, p in enumerate(patterns) if re.fullmatch(p, path)] for path in paths}
    idle = [i for i in range(len(patterns)) if not any(i in found for found in hits.values())]
    if idle:
        with pytest.raises(ConfigError, match=re.escape(f"x.y: rule '{patterns[idle[0]]}'")):
            rules.match(table, paths, where="x.y", default=None)
        return
    expected = [hits[path][0] if hits[path] else None for path in paths]
    assert rules.match(table, paths, where="x.y", default=None) == expected
    if None in expected:
        lonely = paths[expected.index(None)]
        with pytest.raises(ConfigError, match=re.escape(f"x.y: no rule matches '{lonely}'")):
            rules.match(table, paths, where="x.y")
    else:
        assert rules.match(table, paths, where="x.y") == expected


def test_a_shadowed_rule_counts_as_used():
    """It would match, were it alone: a general rule may precede a particular one by intent."""
    assert rules.match([(".*", 1), ("a", 2)], ["a", "b"], where="x") == [1, 1]


def test_none_is_a_value_like_any_other():
    assert rules.match([("a", None), (".*", 3)], ["a", "b"], where="x") == [None, 3]


def test_a_bad_regex_is_named():
    with pytest.raises(ConfigError, match=r"x: '\*a' is not a valid regex \(nothing to repeat"):
        rules.match([("*a", 1)], ["a"], where="x")


def test_match_tree_keeps_the_structure():
    values = rules.match_tree([("a/.*", 1.0), (r".*/\d", 2.0)], TREE, where="x", default=0.0)
    assert jax.tree.structure(values) == jax.tree.structure(TREE)
    assert jax.tree.leaves(values) == [1.0, 1.0, 2.0, 2.0, 2.0, 0.0, 0.0]


def test_scanned_leaves_have_the_names_of_their_layers():
    leaf = np.zeros((3, 5))
    names = rules.layer_names("encoder/blocks/mlp/kernel", leaf)
    assert names == tuple(f"encoder/blocks_{i}/mlp/kernel" for i in range(3))
    assert rules.layer_names("blocks/bias", leaf)[2] == "blocks_2/bias"
    # Behind a first block of its own, which is not stacked.
    assert rules.layer_names("encoder/blocks_rest/bias", leaf)[0] == "encoder/blocks_1/bias"
    for path in ("encoder/blocks_0/mlp/kernel", "encoder/subblocks/kernel", "norm/scale"):
        assert rules.layer_names(path, leaf) is None
