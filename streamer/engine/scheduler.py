"""Pending rows to model calls: a stream at most once per batch, its events in order, padding kept small.

Step mode peels rounds: round k takes the k-th pending row of every stream as one-step batches of up to ``max_rows``.
When few streams are left (they are behind), their remaining rows go as one ragged batch of several steps, because a call
over T steps then costs less than T calls (about 4 times at 1 stream, even at 64).
Window mode sorts closed windows by length, so that rows of a batch are nearly equal in length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from streamer.core import I64, U8, Batch, Op

FEW_STREAMS = 32
"""Up to this many streams, several steps per call beat one-step calls."""


def plan_steps(
    slots: I64, ops: U8 | None, *, max_rows: int, max_steps: int, few: int = FEW_STREAMS
) -> Iterator[Batch | I64]:
    """Yields model calls over the rows 0..N-1 of ``slots`` [N], and arrays of command rows to carry out between them.

    Invariant 1: when a row is yielded, every earlier row of its slot was yielded before; within a batch slots are distinct.
    """
    count = len(slots)
    if count == 0:
        return
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    first = np.empty(count, bool)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    sizes = np.diff(starts, append=count)
    if max_steps > 1 or ops is not None:
        yield from _peel(order, slots, starts, sizes, ops, max_rows=max_rows, max_steps=max_steps, few=few)
        return
    for rank in range(int(sizes.max())):
        alive = starts[sizes > rank]
        yield from _single_steps(order[alive + rank], slots, max_rows)


def _peel(
    order: I64, slots: I64, starts: I64, sizes: I64, ops: U8 | None, *, max_rows: int, max_steps: int, few: int
) -> Iterator[Batch | I64]:
    rank = 0
    while len(starts):
        if len(starts) <= few and int(sizes[0] if len(sizes) == 1 else sizes.max()) - rank > 1:
            yield from _ragged(order, slots, starts + rank, sizes - rank, ops, max_rows=max_rows, max_steps=max_steps)
            return
        rows = order[starts + rank]
        if ops is not None:
            commands = ops[rows] != Op.EVENT
            if commands.any():
                yield rows[commands]
                rows = rows[~commands]
        yield from _single_steps(rows, slots, max_rows)
        rank += 1
        alive = sizes > rank
        starts, sizes = starts[alive], sizes[alive]


def _single_steps(rows: I64, slots: I64, max_rows: int) -> Iterator[Batch]:
    for begin in range(0, len(rows), max_rows):
        chunk = rows[begin : begin + max_rows]
        yield Batch(slots[chunk], chunk[:, None], np.ones(len(chunk), np.int32))


def _ragged(
    order: I64, slots: I64, starts: I64, sizes: I64, ops: U8 | None, *, max_rows: int, max_steps: int
) -> Iterator[Batch | I64]:
    """Few streams with many rows: up to ``max_steps`` steps per call, each row cut at its stream's next command."""
    queues = [order[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    while queues:
        commands = [queue[0] for queue in queues if ops is not None and ops[queue[0]] != Op.EVENT]
        if commands:
            yield np.array(commands, np.int64)
            gone = set(commands)
            queues = [queue[1:] if queue[0] in gone else queue for queue in queues]
            queues = [queue for queue in queues if len(queue)]
            continue
        heads = [_until_command(queue[:max_steps], ops) for queue in queues[:max_rows]]
        lengths = np.array([len(head) for head in heads], np.int32)
        rows = np.full((len(heads), int(lengths.max())), -1, np.int64)
        for row, head in zip(rows, heads, strict=True):
            row[: len(head)] = head
        yield Batch(slots[rows[:, 0]], rows, lengths)
        queues = [queue[len(head) :] for queue, head in zip(queues, heads, strict=False)] + queues[len(heads) :]
        queues = [queue for queue in queues if len(queue)]


def _until_command(rows: I64, ops: U8 | None) -> I64:
    if ops is None:
        return rows
    commands = np.flatnonzero(ops[rows] != Op.EVENT)
    return rows[: commands[0]] if len(commands) else rows


def plan_windows(
    lengths: Sequence[int], *, max_rows: int, max_cells: int, ragged: bool, spread: float = 1.25
) -> list[I64]:
    """Groups window indexes into batches: lengths within a factor ``spread`` (equal ones unless ``ragged``), at most
    ``max_rows`` rows and ``max_cells`` rows x steps. A single window longer than ``max_cells`` is a batch of its own."""
    if not lengths:
        return []
    sizes = np.asarray(lengths, np.int64)
    order = np.argsort(sizes, kind="stable")
    batches, begin = [], 0
    for index in range(1, len(order) + 1):
        if index < len(order):
            longest, shortest, rows = int(sizes[order[index]]), int(sizes[order[begin]]), index + 1 - begin
            alike = longest == shortest or (ragged and longest <= max(shortest * spread, shortest + 4))
            if alike and rows <= max_rows and rows * longest <= max_cells:
                continue
        batches.append(order[begin:index])
        begin = index
    return batches
