"""Pending rows to model calls: a stream at most once per batch, its events in order, padding kept small.

Step mode peels rounds: round k takes the k-th pending row of every stream as one-step batches of up to ``max_rows``.
When few streams are left (they are behind), their remaining rows go as one ragged batch of several steps, because a call
over T steps then costs less than T calls (about 4 times at 1 stream, even at 64).
Window mode sorts closed windows by length, so that rows of a batch are nearly equal in length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.core import I64, U8, Batch, Flags, Op

FEW_STREAMS = 32
"""Up to this many streams, several steps per call beat one-step calls."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Before the event rows that follow, the streams of ``rows`` begin anew from the initial state."""

    rows: I64


def plan_steps(
    slots: I64,
    ops: U8 | None,
    anew: Flags | None = None,
    *,
    max_rows: int,
    max_steps: int,
    few: int = FEW_STREAMS,
) -> Iterator[Batch | Restart | I64]:
    """Yields model calls over the rows 0..N-1 of ``slots`` [N], and what is to be carried out between them: arrays of
    command rows, and restarts of event rows that ``anew`` [N] marks.

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
    sizes = np.append(starts[1:], count) - starts
    rank = 0
    while len(starts):
        if max_steps > 1 and len(starts) <= few and int(sizes[0] if len(sizes) == 1 else sizes.max()) - rank > 1:
            queues = [order[at + rank : at + size] for at, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
            yield from _ragged(queues, slots, ops, anew, max_rows=max_rows, max_steps=max_steps)
            return
        rows = order[starts + rank]
        if ops is not None:
            commands = ops[rows] != Op.EVENT
            if commands.any():
                yield rows[commands]
                rows = rows[~commands]
        if anew is not None and (restarted := rows[anew[rows]]).size:
            yield Restart(restarted)
        yield from _single_steps(rows, slots, max_rows)
        rank += 1
        alive = sizes > rank
        starts, sizes = starts[alive], sizes[alive]


def _single_steps(rows: I64, slots: I64, max_rows: int) -> Iterator[Batch]:
    for begin in range(0, len(rows), max_rows):
        chunk = rows[begin : begin + max_rows]
        yield Batch(slots[chunk], chunk[:, None], np.ones(len(chunk), np.int32))


def _ragged(
    queues: list[I64], slots: I64, ops: U8 | None, anew: Flags | None, *, max_rows: int, max_steps: int
) -> Iterator[Batch | Restart | I64]:
    """Few streams with many rows: up to ``max_steps`` steps per call, each row cut at its stream's next command or restart."""
    while queues:
        commands = [queue[0] for queue in queues if ops is not None and ops[queue[0]] != Op.EVENT]
        if commands:
            yield np.array(commands, np.int64)
            gone = set(commands)
            queues = [queue[1:] if queue[0] in gone else queue for queue in queues]
            queues = [queue for queue in queues if len(queue)]
            continue
        heads = [_until_cut(queue[:max_steps], ops, anew) for queue in queues[:max_rows]]
        if anew is not None and (restarted := [head[0] for head in heads if anew[head[0]]]):
            yield Restart(np.array(restarted, np.int64))
        lengths = np.array([len(head) for head in heads], np.int32)
        rows = np.full((len(heads), int(lengths.max())), -1, np.int64)
        for row, head in zip(rows, heads, strict=True):
            row[: len(head)] = head
        yield Batch(slots[rows[:, 0]], rows, lengths)
        queues = [queue[len(head) :] for queue, head in zip(queues, heads, strict=False)] + queues[len(heads) :]
        queues = [queue for queue in queues if len(queue)]


def _until_cut(rows: I64, ops: U8 | None, anew: Flags | None) -> I64:
    """Up to the next command, or to the next event, beyond the first, that begins anew."""
    cut = np.zeros(len(rows), bool)
    if ops is not None:
        cut |= ops[rows] != Op.EVENT
    if anew is not None:
        cut[1:] |= anew[rows[1:]]
    return rows[: int(cut.argmax())] if cut.any() else rows


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
