"""Broken ONNX files: the scanner ends, and ends in a sentence, whatever the bytes are."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx")

from onnx_models import lstm

from streamer.errors import ModelError
from streamer.modelfile.graph import scan

pytestmark = pytest.mark.torch

GOOD = lstm().SerializeToString()


def test_the_file_that_is_broken_below_is_good() -> None:
    found = scan(GOOD)
    assert (found.external, found.custom, found.batch_major) == (set(), set(), set())


# What follows the graph: the operator set's domain and version.
TAIL_BYTES = 6


@given(cut=st.integers(0, len(GOOD) - TAIL_BYTES - 1))
def test_a_file_cut_off_within_its_graph_is_refused(cut: int) -> None:
    with pytest.raises(ModelError, match="not an ONNX model"):
        scan(GOOD[:cut])


@given(changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(ModelError):
        scan(bytes(data))


@given(data=st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(ModelError):
        scan(data)
