"""Header names that are not UTF-8: they would end the client's parser, and the service with it.

Kafka's broker takes any bytes as a header's name. The client's compiled parser raises in the middle of the batch, and so
does every process that reads it after us. From that record on the batch is read by the client's Python parser instead,
with such names told as Python would escape them: ``b"\\xff"`` is ``"\\\\xff"``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka.record.default_records import _DefaultRecordBatchPy


def records(batch: bytes) -> Iterable[Any]:
    """All records of a batch (format v2), whatever names of headers there are."""
    return _Lenient(batch)


class _Text(bytearray):
    """Bytes whose parts decode to text, always."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Text(found) if isinstance(index, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, "backslashreplace")


class _Lenient(_DefaultRecordBatchPy):
    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _Text(self._buffer)
