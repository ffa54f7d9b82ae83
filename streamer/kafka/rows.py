"""What the records look like that an epoch writes to the output and to the dead-letter topic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from streamer.core import Headers, Outgoing, Reject
from streamer.kafka.internals import Row

SOURCE_HEADER = "streamer-source"


def prediction_rows(prefix: bytes, partition: int, parts: Sequence[Outgoing], *, stamped: bool = True) -> Iterable[Row]:
    """``prefix``: of the sources, the input topic and a slash. ``stamped``: with the times of their records, else of when
    they are written."""
    prefix += b"%d/" % partition
    for part in parts:
        sources: list[list[tuple[str, bytes | None]]] = [
            [(SOURCE_HEADER, prefix + b"%d" % source)] for source in part.sources
        ]
        for row, more in part.headers.items():
            sources[row] = [*sources[row], *more]
        times: Iterable[int | None] = part.timestamps_ms if stamped else repeat(None, len(part.keys))
        yield from zip(times, part.keys, part.values, sources, strict=True)


def dead_letter_row(reject: Reject, prefix: bytes, max_bytes: int, *, stamped: bool = True) -> Row:
    """Original key, value and headers with the reason; the value is cut if the record would exceed the topic's limit."""
    headers: list[tuple[str, bytes | None]] = [
        *reject.headers,
        ("streamer-error", reject.reason.encode()),
        ("streamer-error-detail", reject.detail.encode()[:1024]),
        (SOURCE_HEADER, prefix + b"%d/%d" % (reject.partition, reject.offset)),
    ]
    value = reject.value
    fixed = len(reject.key or b"") + 256  # batch and record framing
    room = max_bytes - fixed - _size(headers)
    if room < 0:  # headers alone are too large: keep ours
        headers = [*headers[-3:], ("streamer-headers-dropped", b"%d" % len(reject.headers))]
        room = max_bytes - fixed - _size(headers)
    if value is not None and len(value) > room:
        headers.append(("streamer-truncated", b"%d" % len(value)))
        value = value[: max(room - 64, 0)]
    key = reject.key
    if key is not None and room < 0:
        key = None
    return reject.timestamp_ms if stamped else None, key, value, headers


def _size(headers: Headers) -> int:
    return sum(len(name.encode()) + len(value or b"") + 10 for name, value in headers)
