"""What the records look like that an epoch writes to the output and to the dead-letter topic; and how a dead letter is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from streamer.core import Headers, Outgoing, Reject

Row = tuple[int | None, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""timestamp in ms, key, value, headers"""

NO_TIME = -1
"""Of a record that has none"""
SOURCE_HEADER = "streamer-source"
REASON_HEADER = "streamer-error"
DETAIL_HEADER = "streamer-error-detail"
TRUNCATED_HEADER = "streamer-truncated"
"""Bytes of the value that was cut"""
KEY_DROPPED_HEADER = "streamer-key-dropped"
"""Bytes of the key that is missing"""
HEADERS_DROPPED_HEADER = "streamer-headers-dropped"
"""How many headers are missing"""
SMALLEST_BATCH_BYTES = 1_024
"""A dead letter fits every topic that takes batches of this size: nobody has smaller ones."""
RECORD_BYTES = 448
"""At most, beside key, value and other headers: framing of a batch with one record (100) and the header that names the
source (15 + 10, and a topic of 249, a partition and an offset of 30)."""
_FRAMING_BYTES = 100
_MARKS_BYTES = 120
"""The three headers that say what is missing"""
_DETAIL_BYTES = 1_024


class RowTooLarge(ValueError):
    """A row that does not fit a record batch alone."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def source_prefix(prefix: bytes, partition: int) -> bytes:
    """What the sources of a partition begin with; an offset follows. ``prefix``: the input topic and a slash."""
    return prefix + b"%d/" % partition


def prediction_rows(prefix: bytes, partition: int, parts: Sequence[Outgoing], *, stamped: bool = True) -> Iterable[Row]:
    """``prefix``: of the sources, the input topic and a slash. ``stamped``: with the times of their records, else of when
    they are written."""
    source_of = (source_prefix(prefix, partition).replace(b"%", b"%%") + b"%d").__mod__
    for part in parts:
        sources = map(source_of, part.sources)
        headers: list[list[tuple[str, bytes | None]]]
        if len(part.common) == 1:  # the model's, as of nearly all
            (model,) = part.common
            headers = [[(SOURCE_HEADER, source), model] for source in sources]
        else:
            headers = [[(SOURCE_HEADER, source), *part.common] for source in sources]
        for row, more in part.headers.items():
            headers[row] = [*headers[row], *more]
        times: Iterable[int | None] = part.timestamps_ms if stamped else repeat(None, len(part.keys))
        if stamped and NO_TIME in part.timestamps_ms:
            times = map(own_time, part.timestamps_ms)
        yield from zip(times, part.keys, part.values, headers, strict=True)


def own_time(record_ms: int) -> int | None:
    """What an answer to a record is stamped with; None: when it is written. The client never closes a batch of records that
    have no time."""
    return None if record_ms == NO_TIME else record_ms


def dead_letter_row(reject: Reject, prefix: bytes, max_bytes: int, *, stamped: bool = True) -> Row:
    """Original key, value and headers, and behind them ours: why, and from where. ``stamped``: with the time of the record.

    It fits a batch of ``max_bytes`` (at least ``SMALLEST_BATCH_BYTES``) whatever the record held: the value is cut, then
    the headers are dropped, then the key, and a header says so. A key is never cut: it would be another stream's."""
    ours: list[tuple[str, bytes | None]] = [
        (REASON_HEADER, reject.reason.encode()),
        (DETAIL_HEADER, _cut(reject.detail, min(_DETAIL_BYTES, max_bytes // 4))),
        (SOURCE_HEADER, prefix + b"%d/%d" % (reject.partition, reject.offset)),
    ]
    key, value, kept = reject.key, reject.value, list(reject.headers)
    marks: list[tuple[str, bytes | None]] = []
    room = max_bytes - _FRAMING_BYTES - _MARKS_BYTES - headers_bytes(ours) - len(key or b"")
    if kept and headers_bytes(kept) > room:
        marks.append((HEADERS_DROPPED_HEADER, b"%d" % len(kept)))
        kept = []
    if room < 0 and key is not None:
        marks.append((KEY_DROPPED_HEADER, b"%d" % len(key)))
        room += len(key)
        key = None
    room -= headers_bytes(kept)
    if value is not None and len(value) > room:
        marks.append((TRUNCATED_HEADER, b"%d" % len(value)))
        value = value[: max(room, 0)]
    return own_time(reject.timestamp_ms) if stamped else None, key, value, [*kept, *ours, *marks]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What the headers of a dead letter say. ``headers``: those that the rejected record had."""

    reason: str
    detail: str
    source: str
    """TOPIC/PARTITION/OFFSET"""
    headers: Headers
    whole: bool
    """Key, value and headers are those of the record."""

    @property
    def topic(self) -> str:
        return self.source.rsplit("/", 2)[0]

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset. ValueError: the source is none."""
        _, partition, offset = self.source.rsplit("/", 2)
        return int(partition), int(offset)


def read_dead_letter(headers: Headers) -> DeadLetter | None:
    """The inverse of ``dead_letter_row``; None for a record that is no dead letter. Headers of the same names that the
    record brought along (from another service) stay its own: ours are the last."""
    begin = next((at for at in range(len(headers) - 1, -1, -1) if headers[at][0] == REASON_HEADER), None)
    if begin is None:
        return None
    ours = {name: (value or b"").decode("utf-8", "replace") for name, value in headers[begin:]}
    missing = {TRUNCATED_HEADER, KEY_DROPPED_HEADER, HEADERS_DROPPED_HEADER} & ours.keys()
    source = ours.get(SOURCE_HEADER, "")
    return DeadLetter(ours[REASON_HEADER], ours.get(DETAIL_HEADER, ""), source, tuple(headers[:begin]), not missing)


def headers_bytes(headers: Headers) -> int:
    """At most, in a record."""
    return sum(len(name.encode()) + len(value or b"") + 10 for name, value in headers)


def _cut(text: str, size: int) -> bytes:
    """UTF-8 of at most ``size`` bytes, whole characters."""
    return text.encode("utf-8", "backslashreplace")[:size].decode("utf-8", "ignore").encode()
