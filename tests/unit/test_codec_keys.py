"""Keys of every form: one text everywhere, and the key's own bytes back for the answers."""

from __future__ import annotations

import base64
import struct
import uuid

import pytest
from decoding import contract, records
from hypothesis import given
from hypothesis import strategies as st

from streamer.records.decode import Codec
from streamer.records.keys import Keys
from streamer.records.unusable import Unusable
from streamer.words import KeyForm

ID = uuid.UUID("0b2f4d1e-0000-4000-8000-00000000ff01")


@pytest.mark.parametrize(
    ("form", "key", "text"),
    [
        ("utf8", "é".encode(), "é"),
        ("int64", struct.pack(">q", 7), "7"),
        ("int64", struct.pack(">q", 1_234_567_890_123), "1234567890123"),
        ("int64", struct.pack(">q", -(2**63)), str(-(2**63))),
        ("int32", struct.pack(">i", -5), "-5"),
        ("uuid", ID.bytes, str(ID)),
        ("hex", b"\x00\xff\x10", "00ff10"),
        ("base64", b"\x00\xff\x10", base64.b64encode(b"\x00\xff\x10").decode()),
    ],
)
def test_one_text_and_the_same_bytes_back(form: str, key: bytes, text: str) -> None:
    codec = Codec(contract(), "json", key=form)
    batch = codec.decode(records([b'{"x":[1,2]}'] * 2 + [b"x"], keys=[key] * 3))
    assert batch.keys == [text.encode()] * 2
    assert codec.keys.raws(batch.keys) == [key] * 2
    assert batch.rejects[0].key == key, "a dead letter has the key that the record had"


@pytest.mark.parametrize(("form", "sizes"), [("int32", (3, 5, 8)), ("int64", (4, 7, 9)), ("uuid", (15, 17, 36))])
def test_a_key_of_another_size_is_refused(form: str, sizes: tuple[int, ...]) -> None:
    codec, size = Codec(contract(), "json", key=form), {"int32": 4, "int64": 8, "uuid": 16}[form]
    for other in sizes:
        batch = codec.decode(records([b'{"x":[1,2]}'] * 3, keys=[bytes(size), bytes(other), bytes(size)]))
        assert [(reject.offset, reject.reason) for reject in batch.rejects] == [(1, "bad_key")]
        assert len(batch) == 2


@given(st.sampled_from(list(KeyForm)), st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8), st.data())
def test_every_form_is_one_to_one_and_columns_agree_with_the_definition(
    form: KeyForm, found: list[bytes], data: st.DataObject
) -> None:
    size = {KeyForm.INT32: 4, KeyForm.INT64: 8, KeyForm.UUID: 16}.get(form)
    if size and data.draw(st.booleans()):
        found = [key.ljust(size, b"\0")[:size] for key in found]
    keys = Keys(form)
    texts = []
    for key in found:
        try:
            texts.append(keys.text(key))
        except Unusable as why:
            assert why.reason == "bad_key"
    if len(texts) < len(found):
        assert keys.texts(found) is None
        return
    assert keys.texts(found) == texts
    assert keys.raws(texts) == found == [keys.raw(text) for text in texts]
    assert len(set(texts)) == len(set(found))
    assert all(text.decode() for text in texts)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("int64", "07"),
        ("int64", "+7"),
        ("int64", " 7"),
        ("int64", "1_0"),
        ("int64", str(2**63)),
        ("int32", str(2**31)),
        ("int64", "x"),
        ("uuid", str(ID).upper()),
        ("uuid", ID.hex),
        ("hex", "0g"),
        ("hex", "00 ff"),
        ("hex", ""),
        ("base64", "AA"),
        ("base64", "AB=="),
        ("utf8", ""),
    ],
)
def test_text_that_no_key_has_is_refused(form: str, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Keys(KeyForm(form)).raw(text.encode())
