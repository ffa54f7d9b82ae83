"""Events for the chain model over a real broker, and what a run without Kafka answers to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from serving import Read, Row, event
from simulated import advance

PARTITIONS = 4


def rows(first: int, count: int, streams: int = 20) -> Iterable[Row]:
    for index in range(first, first + count):
        stream = index % streams
        yield stream % PARTITIONS, b"s%d" % stream, event([float(index % 11)]), []


def oracle(count: int, streams: int = 20) -> dict[bytes, list[float]]:
    """Per stream the outputs of a run without Kafka."""
    state: dict[bytes, float] = defaultdict(float)
    outputs: dict[bytes, list[float]] = defaultdict(list)
    for index in range(count):
        key = b"s%d" % (index % streams)
        state[key] = advance(state[key], float(index % 11))
        outputs[key].append(state[key])
    return outputs


def check(found: Sequence[Read], count: int, streams: int = 20) -> None:
    sources = Counter(read.source for read in found)
    assert not [source for source, times in sources.items() if times > 1], "a prediction came twice"
    assert len(found) == count, f"{count - len(found)} predictions are missing"
    got: dict[bytes, list[float]] = defaultdict(list)
    for read in sorted(found, key=lambda read: (read.partition, read.offset)):
        assert read.key is not None
        got[read.key].append(read.document["y"])
    assert got == oracle(count, streams)
