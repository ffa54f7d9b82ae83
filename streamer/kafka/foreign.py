"""Record batches of any producer: header names that are not UTF-8 would end the client's parser, and the service with it.

Kafka's broker takes any bytes as a header's name. The client's compiled parser raises in the middle of the batch, and so
does every process that reads it after us. From that record on the batch is read by the client's Python parser instead,
with such names told as Python would escape them: ``b"\\xff"`` is ``"\\\\xff"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_LENGTH = slice(8, 12)
_LOG_OVERHEAD = 12
"""Bytes of a batch before what its length counts."""


class Records:
    """``MemoryRecords`` of a fetch, whatever names of headers there are. Beyond that it is the client's."""

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self._data = memoryview(data)
        self._at = 0

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        batch, begin = self._records.next_batch(), self._at
        self._at += _LOG_OVERHEAD + int.from_bytes(self._data[begin:][_LENGTH], "big")
        # formats before v2 have no headers
        return batch if batch is None or batch.magic < 2 else _Batch(batch, self._data[begin : self._at])


class _Batch:
    """A batch of the client; its records are read by the compiled parser as far as that gets."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch, self._raw = batch, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        count = 0
        try:
            for record in self._batch:
                count += 1  # counted before it is handed on: it was read
                yield record
        except UnicodeDecodeError:
            yield from islice(_Lenient(self._raw), count, None)


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
