"""Checkpoints come back bit for bit or not at all, on any mesh, and errors say which is good."""

import json
import pathlib
import shutil

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.checkpoints.store import CheckpointStore
from encoders.errors import CheckpointError, StorageError


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    ema: dict | None = None


def make_state(seed=0, width=16):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {
            "kernel": jax.random.normal(keys[0], (8, width)),
            "bias": jnp.full((width,), -0.0),
        },
        "head": {"kernel": jax.random.normal(keys[1], (width, 4)).at[0, 0].set(jnp.nan)},
    }
    optimizer = optax.adamw(1e-3, mu_dtype="bfloat16")
    state = optimizer.init(params)
    _, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    return State(step=jnp.int32(seed), params=params, opt_state=state)


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: state),
    )


def assert_same_bits(a, b):
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with checkpoints of steps 10 and 20, never written to again."""
    directory = tmp_path_factory.mktemp("saved")
    with CheckpointStore(directory, keep_last=2) as store:
        for step in (10, 20):
            metadata = {"config": {"seed": step}, "sizes": [1, 2]}
            store.save(step, make_state(step), metadata, {"accuracy": step / 100})
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    """The same, to be damaged; hard links would share their bytes."""
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def test_comes_back_bit_for_bit(saved):
    with CheckpointStore(saved) as store:
        assert store.steps() == [10, 20]
        assert store.latest() == 20
        for step in (10, 20):
            state = make_state(step)
            assert_same_bits(store.restore(abstract(state), step), state)
            assert store.metadata(step) == {"config": {"seed": step}, "sizes": [1, 2]}
        assert isinstance(store.restore(abstract(make_state())), State)
        assert store.metadata()["config"] == {"seed": 20}


def test_numpy_leaves_stay_numpy_and_scalars_keep_their_shape(tmp_path):
    state = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "n": np.int64(7), "j": jnp.ones(())}
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, {}, wait=True)
        back = store.restore(state)
    assert isinstance(back["a"], np.ndarray)
    assert back["a"].dtype == np.float64
    assert back["n"].shape == ()
    assert back["n"] == 7
    assert isinstance(back["j"], jax.Array)
    np.testing.assert_array_equal(back["a"], state["a"])


def test_params_are_read_without_the_model(saved):
    with CheckpointStore(saved) as store:
        params = store.read_params()
        part = store.read_params(10, "params/encoder")
        with pytest.raises(CheckpointError, match=r"has no 'ema'; it has opt_state, params, step"):
            store.read_params(prefix="ema")
    expected = jax.device_get(make_state(20).params)
    assert_same_bits(params, expected)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
    assert_same_bits(part, jax.device_get(make_state(10).params["encoder"]))


def test_state_may_be_donated_while_it_is_written(tmp_path):
    """Save returns only when the buffers are its own, on the CPU too, where copies get elided."""
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    host = {"n": np.zeros(1000, np.int64)}
    state = {"w": jnp.zeros((512, 512)), "b": jnp.zeros((8, 3), jnp.bfloat16)}
    with CheckpointStore(tmp_path, keep_last=5) as store:
        for step in range(4):
            store.save(step, {**state, **host}, {})
            state = advance(advance(state))
            host["n"] += 1
        store.wait()
        for step in range(4):
            back = store.restore({**state, **host}, step)
            assert float(back["w"].min()) == float(back["w"].max()) == 2 * step
            assert back["b"].astype(jnp.float32).max() == 2 * step
            assert set(back["n"]) == {step}


MESHES = [((8, 1), P("a")), ((2, 4), P("a", "b")), ((4, 2), P(None, ("b", "a"))), ((1, 8), P())]


def test_restores_onto_any_mesh(tmp_path):
    array = jax.random.normal(jax.random.key(0), (16, 24))
    shardings = [
        NamedSharding(jax.sharding.Mesh(np.array(jax.devices()).reshape(shape), ("a", "b")), spec)
        for shape, spec in MESHES
    ]
    with CheckpointStore(tmp_path, keep_last=9) as store:
        for step, source in enumerate(shardings):
            store.save(step, {"x": jax.device_put(array, source)}, {}, wait=True)
            for target in shardings:
                shape = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=target)
                back = store.restore({"x": shape})["x"]
                assert back.sharding == target
                assert np.asarray(back).tobytes() == np.asarray(array).tobytes()


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [6]),
        ({"keep_last": 3}, [4, 5, 6]),
        ({"keep_every": 3}, [0, 3, 6]),
        ({"keep_last": 2, "keep_every": 4}, [0, 4, 5, 6]),
        ({"best_metric": "loss", "best_mode": "min"}, [3, 6]),
        ({"best_metric": "loss"}, [1, 6]),
        ({"best_metric": "never"}, [6]),
    ],
)
def test_keeps_what_is_asked_for(tmp_path, options, kept):
    losses = [5.0, 9.0, float("nan"), 1.0, 2.0, 3.0, 1.5]
    with CheckpointStore(tmp_path, **options) as store:
        for step, loss in enumerate(losses):
            store.save(step, {"x": jnp.zeros(3)}, {}, {"loss": loss} if step != 5 else None)
        store.wait()
        assert store.steps() == kept
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == kept


def test_best_is_known_after_reopening(saved):
    with CheckpointStore(saved, best_metric="accuracy", best_mode="min") as store:
        assert store.best() == 10
    with CheckpointStore(saved, best_metric="accuracy") as store:
        assert store.best() == 20
    with CheckpointStore(saved, best_metric="loss") as store:
        assert store.best() is None


def test_the_checkpoint_that_was_evaluated_is_kept_not_one_that_repeats_its_metrics(tmp_path):
    with CheckpointStore(tmp_path, best_metric="accuracy") as store:
        for step, accuracy in enumerate([0.1, 0.7, 0.7, 0.7, 0.6, 0.6]):
            store.save(step, {"x": np.zeros(3)}, {}, {"accuracy": accuracy})
        store.wait()
        assert store.best() == 1
        assert store.steps() == [1, 5]


def test_a_step_that_is_there_is_left_alone(copy):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with CheckpointStore(copy, keep_last=2) as store:
        store.save(20, make_state(99), {"other": True}, wait=True)
    assert before == {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}


def test_readers_change_nothing_and_the_next_writer_cleans_up(copy):
    unfinished = copy / "30" / "arrays.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "half").write_bytes(b"\0" * 100)
    (copy / "notes.txt").write_text("mine")
    with CheckpointStore(copy, keep_last=9) as store:
        assert store.steps() == [10, 20]
        with pytest.raises(CheckpointError, match=r"no finished checkpoint of step 30 .* 10, 20"):
            store.restore(abstract(make_state()), 30)
        assert unfinished.exists()
        store.save(40, make_state(40), {}, wait=True)
        assert store.steps() == [10, 20, 40]
    assert not (copy / "30").exists()
    assert (copy / "notes.txt").exists()


def test_nothing_there(tmp_path):
    with CheckpointStore(tmp_path / "absent") as store:
        assert store.steps() == []
        assert store.latest() is None
        with pytest.raises(CheckpointError, match="no finished checkpoint in"):
            store.restore({"x": np.zeros(1)})
    assert not (tmp_path / "absent").exists()


def test_keep_last_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="keep_last"):
        CheckpointStore(tmp_path, keep_last=0)


# --- another model ------------------------------------------------------------------------------


def test_another_model_is_refused_with_a_list(saved):
    state = make_state(20)
    params = {**state.params, "decoder": {f"layer{i}": jnp.zeros(2) for i in range(8)}}
    del params["head"]
    params["encoder"] = {**params["encoder"], "bias": jnp.zeros(17)}
    with (
        CheckpointStore(saved) as store,
        pytest.raises(CheckpointError) as caught,
    ):
        store.restore(abstract(state.replace(params=params)))
    message = str(caught.value)
    assert "params/decoder/layer0" in message
    assert "layer7" not in message  # the list is cut
    assert "and 3 more" in message
    assert "only in the checkpoint: params/head/kernel" in message
    assert "params/encoder/bias is float32[16] there, float32[17] here" in message
    assert str(saved) in message
    assert "step 20" in message


def test_another_dtype_is_refused(saved):
    state = make_state(20)
    other = state.replace(step=jnp.float32(0))
    with (
        CheckpointStore(saved) as store,
        pytest.raises(CheckpointError, match=r"step is int32\[\] there, float32\[\] here"),
    ):
        store.restore(abstract(other))


# --- damage -------------------------------------------------------------------------------------


def damage(path, kind, rng):
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == "truncate":
        data = data[: len(data) // 2]
    elif kind == "remove bytes":
        del data[len(data) // 3 : len(data) // 3 + 1]
    path.unlink()
    if kind != "delete":
        path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["flip", "truncate", "remove bytes", "delete"])
def test_damage_to_any_file_is_found(copy, kind):
    rng = np.random.default_rng(0)
    shapes = abstract(make_state(20))
    with CheckpointStore(copy) as store:
        files = [p for p in (copy / "20").rglob("*") if p.is_file()]
        assert len(files) > 8
        for path in files:
            if kind == "delete" and path.name == "manifest.json" and path.parent == copy / "20":
                continue  # without it, it is no finished checkpoint
            data = path.read_bytes()
            damage(path, kind, rng)
            with pytest.raises(CheckpointError) as caught:
                store.restore(shapes)
            message = str(caught.value)
            assert "step 20" in message
            assert str(copy) in message
            assert path.name in message
            assert "the last good one is step 10" in message
            assert "\n" not in message
            path.write_bytes(data)
        assert_same_bits(store.restore(shapes), make_state(20))


def test_damage_is_found_by_every_reader(copy):
    [array_file] = [p for p in (copy / "20/arrays/d").iterdir() if p.stat().st_size > 100][:1]
    damage(array_file, "flip", np.random.default_rng(0))
    damage(copy / "20/metadata.json", "truncate", None)
    with CheckpointStore(copy) as store:
        for read in (store.read_params, store.metadata):
            with pytest.raises(CheckpointError, match=r"step 20 .* is damaged"):
                read()
        damage(copy / "10/manifest.json", "truncate", None)
        with pytest.raises(CheckpointError, match="no other checkpoint is intact"):
            store.metadata()
        assert store.best() is None


def test_manifest_of_another_format_is_named(copy):
    from encoders.checkpoints import manifest

    content = manifest.read(copy / "20") | {"format": 99}
    content["checksum"] = manifest._checksum(content)
    (copy / "20" / "manifest.json").write_text(json.dumps(content))
    with CheckpointStore(copy) as store, pytest.raises(CheckpointError, match="format 99"):
        store.restore(abstract(make_state(20)))


# --- storage ------------------------------------------------------------------------------------


def test_an_impossible_directory_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    expected = r"step 0 could not be written to .*checkpoints \(Not a directory\); no earlier one"
    with (
        CheckpointStore(tmp_path / "file" / "checkpoints") as store,
        pytest.raises(StorageError, match=expected),
    ):
        store.save(0, {"x": jnp.zeros(2)}, {}, wait=True)


def test_what_does_not_fit_is_not_started(copy, monkeypatch):
    usage = shutil.disk_usage(copy)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (
        CheckpointStore(copy, keep_last=3) as store,
        pytest.raises(
            StorageError, match=r"step 30 .* needs 40\.0 MB, 0\.0 MB .*step 20 is intact"
        ),
    ):
        store.save(30, {"x": jnp.zeros(10_000_000)}, {})
    assert sorted(p.name for p in copy.iterdir()) == ["10", "20"]
