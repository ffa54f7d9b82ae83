"""A user's decoder is a stranger's code: what it says of each record counts, whatever else it does."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from decoding import NOW_MS, contract, outcomes, records

from streamer.errors import ConfigurationError
from streamer.records.decode import Codec


@pytest.fixture
def decoder() -> Iterator[Callable[..., Codec]]:
    module = types.ModuleType("users_own")
    sys.modules["users_own"] = module

    def make(decode: Any, dtype: str = "float32", **options: Any) -> Codec:
        module.decode = decode  # type: ignore[attr-defined]
        return Codec(contract(dtype=dtype), "users_own:decode", **options)

    yield make
    del sys.modules["users_own"]


def plain(values: Sequence[bytes]) -> Any:
    return np.array([[float(part) for part in value.split(b",")] for value in values]), None, {}


GOOD, BAD = b"1,2", b"bad"


def lying(lie: Callable[[Sequence[bytes]], Any]) -> Callable[[Sequence[bytes]], Any]:
    """Right for good values; where a bad one is among them it does ``lie``."""
    return lambda values: lie(values) if BAD in values else plain(values)


def raising(error: BaseException) -> Callable[[Sequence[bytes]], Any]:
    def lie(values: Sequence[bytes]) -> Any:
        raise error

    return lie


class Untold(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def rows(values: Sequence[bytes]) -> np.ndarray:
    return np.zeros((len(values), 2))


LIES: dict[str, Callable[[Sequence[bytes]], Any]] = {
    "raises": raising(KeyError("x")),
    "raises what cannot be told": raising(Untold()),
    "raises a surrogate": raising(ValueError("\ud800")),
    "ends the interpreter": raising(SystemExit(3)),
    "recursion": raising(RecursionError()),
    "None": lambda values: None,
    "one value": rows,
    "four values": lambda values: (rows(values), None, {}, 1),
    "x is None": lambda values: (None, None, {}),
    "too few rows": lambda values: (rows(values)[1:], None, {}),
    "too wide": lambda values: (np.zeros((len(values), 3)), None, {}),
    "text": lambda values: ([["a", "b"]] * len(values), None, {}),
    "objects": lambda values: (np.full((len(values), 2), object()), None, {}),
    "booleans": lambda values: (np.zeros((len(values), 2), bool), None, {}),
    "complex": lambda values: (rows(values) + 1j, None, {}),
    "ragged": lambda values: ([[1.0]] * (len(values) - 1) + [[1.0, 2.0, 3.0]], None, {}),
    "times too few": lambda values: (rows(values), [NOW_MS] * (len(values) + 1), {}),
    "times are a number": lambda values: (rows(values), NOW_MS, {}),
    "a row that is not there": lambda values: (rows(values), None, {len(values): "no"}),
    "a row before the first": lambda values: (rows(values), None, {-1: "no"}),
    "a row that is no number": lambda values: (rows(values), None, {"0": "no"}),
    "a row that is true": lambda values: (rows(values), None, {True: "no"}),
    "rejects are a list": lambda values: (rows(values), None, [1, 2, 3]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_rejects_the_record_and_no_other(
    lie: Callable[[Sequence[bytes]], Any], decoder: Callable[..., Codec]
) -> None:
    codec = decoder(lying(lie))
    for company in ([BAD], [GOOD, BAD], [GOOD] * 9 + [BAD] + [GOOD] * 7 + [BAD]):
        batch = codec.decode(records(company))
        assert [reject.offset for reject in batch.rejects] == [i for i, value in enumerate(company) if value == BAD]
        assert {reject.reason for reject in batch.rejects} == {"undecodable"}
        assert all(reject.detail.encode() for reject in batch.rejects)
        assert batch.x.tolist() == [[1.0, 2.0]] * company.count(GOOD)


def test_one_lie_costs_few_calls(decoder: Callable[..., Codec]) -> None:
    calls = []

    def decode(values: Sequence[bytes]) -> Any:
        calls.append(len(values))
        return lying(raising(ValueError()))(values)

    codec = decoder(decode)
    codec.decode(records([GOOD] * 700 + [BAD] + [GOOD] * 323))
    assert len(calls) <= 2 * 10 + 1


@pytest.mark.parametrize("reason", ["plain", "\ud800", b"\xff", None, 7, "x" * 10_000])
def test_its_reasons_are_told(reason: Any, decoder: Callable[..., Codec]) -> None:
    codec = decoder(lambda values: (rows(values), None, {1: reason}))
    batch = codec.decode(records([GOOD] * 3))
    assert [reject.offset for reject in batch.rejects] == [1]
    assert len(batch.rejects[0].detail.encode()) <= 600


def test_a_keyboard_interrupt_is_the_users_own(decoder: Callable[..., Codec]) -> None:
    with pytest.raises(KeyboardInterrupt):
        decoder(raising(KeyboardInterrupt())).decode(records([GOOD]))


def test_its_memory_may_be_used_again(decoder: Callable[..., Codec]) -> None:
    shared = np.zeros((2, 2), np.float32)

    def decode(values: Sequence[bytes]) -> Any:
        shared[:] = float(values[0])
        return shared, None, {}

    codec = decoder(decode)
    first = codec.decode(records([b"1", b"1"]))
    codec.decode(records([b"5", b"5"]))
    assert first.x.tolist() == [[1.0, 1.0]] * 2


def test_it_cannot_change_the_records(decoder: Callable[..., Codec]) -> None:
    def decode(values: Any) -> Any:
        found = plain(values)
        values.clear()
        return found

    batch = records([GOOD, GOOD])
    assert len(decoder(decode).decode(batch)) == 2
    assert batch.values == [GOOD, GOOD]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (None, [NOW_MS] * 2),
        ([None, NOW_MS - 1], [NOW_MS, NOW_MS - 1]),
        (np.array([np.nan, NOW_MS - 2.0]), [NOW_MS, NOW_MS - 2]),
        (np.array([NOW_MS - 3, NOW_MS - 4]), [NOW_MS - 3, NOW_MS - 4]),
        ((np.int64(NOW_MS - 5), float(NOW_MS)), [NOW_MS - 5, NOW_MS]),
        ([0, NOW_MS], ["bad_time", NOW_MS]),
        ([True, "soon"], ["bad_time", "bad_time"]),
    ],
)
def test_times(times: Any, expected: list[Any], decoder: Callable[..., Codec]) -> None:
    def decode(values: Sequence[bytes]) -> Any:
        if times is None:
            return rows(values), None, {}
        at = [int(value) for value in values]
        return rows(values), [times[each] for each in at], {}

    found = outcomes(decoder(decode).decode(records([b"0", b"1"])))
    assert [found[row][0] if found[row][0] != "event" else found[row][2] for row in range(2)] == expected


def test_numbers_are_exact_or_refused(decoder: Callable[..., Codec]) -> None:
    big = decoder(lambda values: (np.full((len(values), 2), 2**24 + 1), None, {}))
    assert {reject.reason for reject in big.decode(records([GOOD] * 2)).rejects} == {"not_exact"}
    same = decoder(lambda values: (np.full((len(values), 2), 2**60 + 1), None, {}), dtype="int64")
    assert same.decode(records([GOOD])).x.tolist() == [[2**60 + 1] * 2]
    nan = decoder(lambda values: (np.full((len(values), 2), np.nan), None, {}))
    assert {reject.reason for reject in nan.decode(records([GOOD])).rejects} == {"not_finite"}
    unsigned = decoder(lambda values: (np.full((len(values), 2), 2**63, np.uint64), None, {}), dtype="int64")
    assert {reject.reason for reject in unsigned.decode(records([GOOD])).rejects} == {"not_exact"}


@pytest.mark.parametrize("target", ["jsn", "no.such.module:decode", "math:nothing", ":x", "users:"])
def test_a_decoder_that_is_not_there_is_a_configuration_error(target: str) -> None:
    with pytest.raises(ConfigurationError, match=r"input\.format"):
        Codec(contract(), target)
