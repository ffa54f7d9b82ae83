"""Native code writes the JSON of answers exactly as Python does, or says that it is not sure."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from answering import OUTPUTS, contract
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_columns import require_native

from streamer.records.encode import Encoder

NATIVE = require_native()
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
WIDE = st.integers(0, 2**32 - 1).map(lambda bits: struct.unpack("f", struct.pack("I", bits))[0]).filter(np.isfinite)
"""All exponents alike"""


class Watched:
    """The native module, and how often it was sure."""

    def __init__(self) -> None:
        self.sure = self.asked = 0

    def answers(self, *given: Any) -> Any:
        found = NATIVE.answers(*given)
        self.asked += 1
        self.sure += found is not None
        return found


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "per window"])
@settings(max_examples=max(200, settings.default.max_examples), deadline=None)
@given(data=st.data())
def test_answers_are_the_same_bytes(name: str, data: st.DataObject) -> None:
    declared, watched = contract(name, "step"), Watched()
    count = data.draw(st.integers(1, 4))
    keys = [data.draw(st.text(min_size=1, max_size=9)).encode() for _ in range(count)]
    times = np.array(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count)), np.int64)
    outputs = [
        np.array(data.draw(st.lists(NUMBERS | WIDE, min_size=count * each.size, max_size=count * each.size)), np.float32)
        .reshape(count, each.size) for each in declared.outputs
    ]  # fmt: skip
    model = data.draw(st.sampled_from(["m", "100%b", "m%%d%", 'm"\\']))
    found = Encoder(declared, model, native=watched).steps(keys, times, outputs)
    assert found == Encoder(declared, model).steps(keys, times, outputs)
    plain = not any(byte < 0x20 or byte in b'"\\' for key in keys for byte in key)
    assert (watched.asked, watched.sure) == (1, int(plain))


@settings(max_examples=max(3_000, settings.default.max_examples), deadline=None)
@given(number=WIDE)
@example(number=2.0**-14)  # half-way between two decimals of nine digits
@example(number=999_999_999.0)
@example(number=9.9999999e-5)
def test_numbers_are_written_as_python_does(number: float) -> None:
    found = NATIVE.answers([b"", b"", b"", b""], [b"k"], bytes(8), [(struct.pack("f", number), 1, [])])
    assert found == [b"k0%.9g" % np.float32(number)]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_sure(number: float) -> None:
    assert NATIVE.answers([b"", b"", b"", b""], [b"k"], bytes(8), [(struct.pack("f", number), 1, [])]) is None


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "per window"])
def test_columns_of_an_array_in_another_order_are_the_same(name: str) -> None:
    declared = contract(name, "step")
    outputs = [
        np.asfortranarray(np.arange(3 * each.size, dtype=np.float32).reshape(3, each.size)) for each in declared.outputs
    ]
    keys, times = [b"a", b"b", b"c"], np.arange(6)[::2]
    assert Encoder(declared, "m", native=NATIVE).steps(keys, times, outputs) == Encoder(declared, "m").steps(
        keys, times, outputs
    )


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        NATIVE.answers([b"", b"", b""], [b"k"], b"", [])
    with pytest.raises(ValueError, match="part of a number"):
        NATIVE.answers([b"", b"", b""], [b"k"], b"123", [])
    assert NATIVE.answers([b"", b"", b"", b""], [b"k"], bytes(8), [(b"", 1, [])]) is None, "a row that is not there"
