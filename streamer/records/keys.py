"""The stream of a record: the text form of its key, the same everywhere (predictions, changelog, ``/streams``, commands).

Inside, a stream is that text in UTF-8. Each form is one-to-one, so the key's own bytes are not kept: ``raw`` makes them
again, and an answer has the very key that its records had.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

import numpy as np

from streamer.records.unusable import Unusable
from streamer.words import KeyForm, Reason

_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BYTES = {KeyForm.INT32: 4, KeyForm.INT64: 8, KeyForm.UUID: 16}
_WHAT = {
    KeyForm.INT32: "a big-endian int32 (Java Integer)",
    KeyForm.INT64: "a big-endian int64 (Java Long)",
    KeyForm.UUID: "a UUID",
}


class Keys:
    """Keys of one form. ``text`` is the definition, ``texts`` the same for many."""

    def __init__(self, form: KeyForm = KeyForm.UTF8) -> None:
        self.form = form
        self._size = _BYTES.get(form)

    def text(self, key: bytes) -> bytes:
        """The stream of a key that is not empty. Unusable (bad_key): it is not of this form."""
        form = self.form
        if form is KeyForm.UTF8:
            if not _is_utf8(key):
                raise Unusable(
                    Reason.BAD_KEY,
                    'the key is not UTF-8: set input.key = "int64", "int32", "uuid", "hex" or "base64" to what it is',
                )
            return key
        if form is KeyForm.HEX:
            return key.hex().encode()
        if form is KeyForm.BASE64:
            return base64.b64encode(key)
        if len(key) != self._size:
            raise Unusable(
                Reason.BAD_KEY, f'the key has {len(key)} bytes, {_WHAT[form]} has {self._size} (input.key = "{form}")'
            )
        if form is KeyForm.UUID:
            text = key.hex()
            return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()
        return b"%d" % int.from_bytes(key, "big", signed=True)

    def texts(self, keys: Sequence[bytes]) -> list[bytes] | None:
        """The streams of keys, none of them empty; None if one of them is not of this form."""
        if self.form is KeyForm.UTF8:
            try:
                b"\n".join(keys).decode()  # a break between keys: valid together = valid alone
            except UnicodeDecodeError:
                return None
            return list(keys)
        if self._size is not None and set(map(len, keys)) != {self._size}:
            return None
        if self.form in (KeyForm.INT32, KeyForm.INT64):
            numbers = np.frombuffer(b"".join(keys), f">i{self._size}")
            return [b"%d" % number for number in numbers.tolist()]
        return list(map(self.text, keys))

    def raw(self, stream: bytes) -> bytes:
        """The key's own bytes. ValueError: no key of this form has that text."""
        form = self.form
        if form is KeyForm.UTF8:
            key = stream
        elif form is KeyForm.HEX:
            key = bytes.fromhex(stream.decode())
        elif form is KeyForm.BASE64:
            try:
                key = base64.b64decode(stream, validate=True)
            except binascii.Error as error:
                raise ValueError(f"not base64: {error}") from None
        elif form is KeyForm.UUID:
            key = bytes.fromhex(stream.replace(b"-", b"").decode()) if _UUID.fullmatch(stream) else b""
        else:
            try:
                key = int(stream).to_bytes(self._size or 0, "big", signed=True)
            except OverflowError as error:
                raise ValueError(f"no {form}: {error}") from None
        try:
            known = bool(key) and self.text(key) == stream
        except Unusable as error:
            raise ValueError(str(error)) from None
        if not known:
            raise ValueError(f"no key of the form {form} is written like this")
        return key

    def raws(self, streams: Sequence[bytes]) -> list[bytes]:
        """Keys of streams that ``texts`` or ``text`` made."""
        if self.form is KeyForm.UTF8:
            return list(streams)
        if self.form in (KeyForm.INT32, KeyForm.INT64):
            size = _BYTES[self.form]
            joined = np.array([int(stream) for stream in streams], f">i{size}").tobytes()
            return [joined[at : at + size] for at in range(0, len(joined), size)]
        return list(map(self.raw, streams))


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
