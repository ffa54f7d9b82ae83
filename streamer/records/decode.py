"""What a record means: an event, a command, or a reject with a reason. Never an exception, and never its neighbours.

The order in which a record is judged, so that each has one reason: its command, its key, its value, the features in their
order, the time. ``Codec.decode`` is the same for a whole fetch; only rows that a fast path is not sure of are judged alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamer.core import CARRIED_HEADERS, I64, UNREADABLE_HEADER, EventBatch, Headers, Op, RecordBatch
from streamer.errors import ConfigurationError
from streamer.modelfile.contract import Contract
from streamer.records.exact import Exact, Numbers
from streamer.records.formats import Columns, Fields, Native, Source, format_of
from streamer.records.formats.several import joined, no_steps
from streamer.records.keys import Keys
from streamer.records.passing import Passing
from streamer.records.schemas.book import Book
from streamer.records.times import YEAR_2000_MS, TimeRule
from streamer.records.unusable import Unusable, plain, unforeseen
from streamer.words import Decoder, KeyForm, Reason, TimeUnit

OP_HEADER = "streamer-op"
_OPS = {b"reset": Op.RESET, b"end": Op.END}
MAX_KEY_BYTES = 65_536
"""A key is told in the answer's key and, each byte escaped six-fold at worst, in its value: both fit a record of 1 MB."""
MAX_CARRIED_BYTES = 8_192
"""Of one header that travels on to the answer; a longer one is no trace context, and is left out."""

Bad = dict[int, Unusable]
"""Row -> why it is no event"""


class Codec:
    """Decodes one fetch of one partition. Stateless: the same record gives the same event wherever a fetch begins."""

    def __init__(
        self,
        contract: Contract,
        value_format: str,
        *,
        missing: float | None = None,
        max_record_bytes: int = 1_048_576,
        max_record_steps: int = 4_096,
        max_key_bytes: int = MAX_KEY_BYTES,
        max_future_ms: int | None = None,
        min_time_ms: int = YEAR_2000_MS,
        time_unit: str = TimeUnit.MS,
        key: str = KeyForm.UTF8,
        fields: Fields | None = None,
        source: Source | None = None,
        generates: bool = False,
        decoder: str = Decoder.AUTO,
        careful: bool = False,
        passing: Passing | None = None,
    ) -> None:
        """``fields``: where features and time are found, in formats with names. ``source``: of schemas, in formats that have
        them. ``generates``: a model is served that can, so ``generate`` is a command. ``decoder``: which code reads records;
        what they mean is the same. ``careful``: every record by the definition, one by one; what the fast paths are compared
        with. ``passing``: what answers carry of their records."""
        exact = Exact(contract.input.dtype)
        self.features = contract.features
        self.dtype = exact.dtype
        self._several = contract.many_steps
        self.keys = Keys(KeyForm(key))
        self._ops_known = {**_OPS, b"generate": Op.GENERATE} if generates else _OPS
        self._max_record_bytes, self._max_key_bytes = max_record_bytes, max_key_bytes
        self._times = TimeRule(TimeUnit(time_unit), min_time_ms, max_future_ms)
        filled = None if missing is None else _missing(missing, exact)
        native = Native.load(Decoder(decoder))
        self._format = format_of(
            value_format,
            contract.feature_tables,
            exact,
            filled,
            TimeUnit(time_unit),
            fields or Fields(),
            max_record_steps if self._several else None,
            native,
            source,
        )
        self.decoder = native.told
        """Which code reads records, for people"""
        self.schemas: Book | None = None if source is None else source.book
        """What has to be learned before ``decode``, in formats of a registry"""
        self._careful, self._passing = careful, passing

    def decode(self, records: RecordBatch) -> EventBatch:
        """All records of ``records`` become rows of the event batch or of its rejects, in order. N >= 1.

        ``x`` has the contract's dtype, ``keys`` are streams: the text form of the keys. Of records of several steps ``x``
        is [sum of the steps, F]."""
        stamps = np.fromiter(records.timestamps_ms, np.int64, len(records))
        ops, bad = self._ops(records)
        streams = self._usable(records, ops, bad)
        if not ops and not bad:
            x, times = self._events(records.values, stamps, records.headers, bad)  # type: ignore[arg-type]
        else:
            x, times = self._some(records, stamps, ops, bad)
        return self._batch(records, streams, x, times, ops, bad)

    def _ops(self, records: RecordBatch) -> tuple[dict[int, Op], Bad]:
        """Commands, and the rows of those that are none."""
        ops: dict[int, Op] = {}
        bad: Bad = {}
        for row, headers in records.headers.items():
            asked = [value for name, value in headers if name == OP_HEADER]
            if not asked:
                if headers and headers[0][0] == UNREADABLE_HEADER and records.values[row] is None:
                    bad[row] = Unusable(Reason.UNDECODABLE, (headers[0][1] or b"").decode("utf-8", "backslashreplace"))
                continue
            op = self._ops_known.get(asked[0]) if len(asked) == 1 and asked[0] is not None else None
            if op is None:
                which = f"{len(asked)} headers {OP_HEADER}" if len(asked) > 1 else f"header {OP_HEADER}"
                known = ", ".join(name.decode() for name in self._ops_known)
                bad[row] = Unusable(Reason.UNKNOWN_COMMAND, f"{which}: a command is one of {known}")
            else:
                ops[row] = op
        return ops, bad

    def _usable(self, records: RecordBatch, ops: Mapping[int, Op], bad: Bad) -> list[bytes]:
        """The stream of each record; those whose key or value cannot be one are added to ``bad``."""
        keys, values = records.keys, records.values
        if not ops and not bad:
            streams = self._all_usable(keys, values)
            if streams is not None:
                return streams
        found = [b""] * len(keys)
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            if row not in bad:
                try:
                    found[row] = self._stream(key, value, command=row in ops)
                except Unusable as why:
                    bad[row] = why.alone()
        return found

    def _all_usable(self, keys: Sequence[Any], values: Sequence[Any]) -> list[bytes] | None:
        """The streams where all keys and values are there, and none is too large; else None. In few passes."""
        try:
            if max(map(len, values)) > self._max_record_bytes:
                return None
            joined = b"\n".join(keys)
        except TypeError:  # one is None
            return None
        # together, so each; and where no two line breaks meet and none is at an end, no key is empty
        if len(joined) > self._max_key_bytes and max(map(len, keys)) > self._max_key_bytes:
            return None
        if (b"\n\n" in joined or joined[:1] in b"\n" or joined[-1:] == b"\n") and b"" in keys:
            return None
        return self.keys.texts(keys)

    def _stream(self, key: bytes | None, value: bytes | None, *, command: bool) -> bytes:
        if not key:
            raise Unusable(Reason.MISSING_KEY, "the key is the stream's id; this record has none")
        if len(key) > self._max_key_bytes:
            raise Unusable(Reason.TOO_LARGE, f"key has {len(key)} bytes, at most {self._max_key_bytes} can be served")
        stream = self.keys.text(key)
        if value is None and not command:
            raise Unusable(Reason.MISSING_VALUE, "the record has no value")
        if value is not None and len(value) > self._max_record_bytes:
            raise Unusable(
                Reason.TOO_LARGE, f"value has {len(value)} bytes, input.max_record_bytes is {self._max_record_bytes}"
            )
        return stream

    def _nothing(self, rows: int) -> Numbers:
        """Of rows that mean nothing, or not yet: [N, F], or of several steps [N] of arrays."""
        return no_steps(rows) if self._several else np.zeros((rows, self.features), self.dtype)

    def _some(self, records: RecordBatch, stamps: I64, ops: Mapping[int, Op], bad: Bad) -> tuple[Numbers, I64]:
        """With commands, whose rows are zeros, and with rows in ``bad``, which mean nothing."""
        x = self._nothing(len(records))
        times = stamps.copy()
        rows = [row for row in range(len(records)) if row not in bad and row not in ops]
        if rows:
            mine: Bad = {}
            values = [records.values[row] or b"" for row in rows]
            headers = {at: records.headers[row] for at, row in enumerate(rows) if row in records.headers}
            x[rows], times[rows] = self._events(values, stamps[rows], headers, mine)
            bad |= {rows[row]: why for row, why in mine.items()}
        for row in ops:
            if row not in bad:
                try:
                    times[row] = self._times.event_time(None, int(stamps[row]))
                except Unusable as why:
                    bad[row] = why.alone()
        return x, times

    def _events(
        self, values: Sequence[bytes], stamps: I64, headers: Mapping[int, Headers], bad: Bad
    ) -> tuple[Numbers, I64]:
        """Features [N, F], or [N] of arrays [T, F], and times [N] of values; rows in ``bad`` mean nothing."""
        columns = None if self._careful else self._columns(values, headers)
        if columns is None:
            columns = Columns(self._nothing(len(values)), None, list(range(len(values))))
        given = columns.given
        times, unsure = (
            self._times.column(columns.times, stamps) if given is None else self._times.judged(given, stamps)
        )
        bad |= columns.bad
        doubtful = [row for row in sorted({*columns.doubtful, *unsure}) if row not in bad]
        x = columns.x
        if not doubtful:
            return x, times
        x, times = (x if x.flags.writeable else x.copy()), times.copy()
        for row in doubtful:
            try:
                x[row], times[row] = self._event(values[row], headers.get(row, ()), int(stamps[row]))
            except Unusable as why:
                bad[row] = why.alone()
        return x, times

    def _columns(self, values: Sequence[bytes], headers: Mapping[int, Headers]) -> Columns | None:
        try:
            return self._format.columns(values, headers)
        except Exception:  # what nobody foresaw: each record is judged alone, and one of them will say what it was
            return None

    def _event(self, value: bytes, headers: Headers, stamp_ms: int) -> tuple[Sequence[int | float] | Numbers, int]:
        """The definition: what a value means, alone. Unusable: no event."""
        try:
            numbers, given = self._format.row(value, headers)
            return numbers, self._times.event_time(given, stamp_ms)
        except Unusable:
            raise
        except Exception as error:
            raise unforeseen(error) from None

    def _batch(
        self, records: RecordBatch, streams: list[bytes], x: Numbers, times: I64, ops: Mapping[int, Op], bad: Bad
    ) -> EventBatch:
        offsets, stamps = _int64(records.offsets), records.timestamps_ms
        kept: range | list[int] = range(len(records))
        if bad:
            kept = [row for row in kept if row not in bad]
            index = np.array(kept, np.int64)
            offsets, times, x = offsets[index], times[index], x[index]
            streams, stamps = [streams[row] for row in kept], [stamps[row] for row in kept]
        steps: I64 | None = None
        if self._several:
            x, steps = joined(x, self.features, self.dtype)
        last = len(records) - 1
        batch = EventBatch(
            partition=records.partition,
            offsets=offsets,
            times_ms=times,
            timestamps_ms=stamps,
            keys=streams,
            x=x,
            ops=None,
            records=records,
            next_offset=records.offsets[last] + 1,
            rejects=[records.reject(row, bad[row].reason, plain(bad[row].detail)) for row in sorted(bad)],
            steps=steps,
            checksum=zlib.crc32(records.values[last] or b"", zlib.crc32(records.keys[last] or b"")),
        )
        if ops or records.headers or self._passing is not None:
            self._note(batch, records, {row: place for place, row in enumerate(kept)}, ops)
        return batch

    def _note(self, batch: EventBatch, records: RecordBatch, places: Mapping[int, int], ops: Mapping[int, Op]) -> None:
        """Commands and headers that travel on, at the places that their rows have now."""
        for row in places if self._passing is not None else records.headers:
            headers = records.headers.get(row, ())
            found: list[tuple[str, bytes]] = carried(headers)
            if self._passing is not None and row not in ops:
                found.append(self._passing.header(records.values[row] or b"", headers))
            if found and row in places:
                batch.headers[places[row]] = found
        commands = {places[row]: (row, op) for row, op in ops.items() if row in places}
        if commands:
            batch.ops = np.zeros(len(batch), np.uint8)
            for place, (row, op) in sorted(commands.items()):
                batch.ops[place] = op
                if op is Op.GENERATE:
                    batch.commands[place] = records.values[row] or b""


def carried(headers: Headers) -> list[tuple[str, bytes]]:
    """Headers of a record that its answers keep: the trace context, as far as it is one."""
    return [
        (name, value)
        for name, value in headers
        if name in CARRIED_HEADERS and value is not None and len(value) <= MAX_CARRIED_BYTES
    ]


def _int64(growing: Sequence[int]) -> I64:
    """Offsets: without a gap nearly always, so the first and the last say all."""
    first, last = growing[0], growing[-1]
    if last - first + 1 == len(growing):
        return np.arange(first, last + 1, dtype=np.int64)
    return np.fromiter(growing, np.int64, len(growing))


def _missing(missing: float, exact: Exact) -> int | float:
    try:
        return exact.number(missing, "missing")
    except Unusable as error:
        raise ConfigurationError(
            f"input.missing = {missing!r} is no {exact.dtype}, which the model takes: give a number that it holds"
        ) from error
