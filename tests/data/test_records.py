import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.data import records

values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(max_size=20),
    st.binary(max_size=50),
    st.none(),
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_round_trip_of_plain_values(example):
    assert records.unpack(records.pack(example)) == example


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "<f4", "f8", "?", "<c8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_round_trip_of_arrays(dtype, shape):
    array = np.resize(np.array([0, 1, 1], dtype), shape)
    out = records.unpack(records.pack({"x": array}))["x"]
    np.testing.assert_array_equal(out, array)
    assert out.shape == shape
    assert out.dtype == np.dtype(dtype).newbyteorder("<")
    assert out.flags.writeable


def test_numpy_scalars_become_plain():
    assert records.unpack(records.pack({"label": np.int64(3)})) == {"label": 3}


@pytest.mark.parametrize("value", [object(), np.array([object()]), {1, 2}])
def test_what_the_format_does_not_hold(value):
    with pytest.raises(TypeError):
        records.pack({"x": value})


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xc1",
        b"\x81\xa1x",
        msgpack.packb([1, 2]),
        msgpack.packb({"x": msgpack.ExtType(2, b"")}),
        msgpack.packb({"x": msgpack.ExtType(1, msgpack.packb(["|O", [1], b"12345678"]))}),
        msgpack.packb({"x": msgpack.ExtType(1, msgpack.packb(["|u1", [5], b"123"]))}),
        msgpack.packb({"x": msgpack.ExtType(1, msgpack.packb(7))}),
    ],
)
def test_damage_is_a_value_error(damaged):
    with pytest.raises(ValueError):
        records.unpack(damaged)
