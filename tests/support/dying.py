"""``python dying.py PHASE COUNT MARK ARGUMENTS...``: the service, that ends at once when PHASE is reached for the COUNT-th
time. It leaves the file MARK, so that a test knows that it died there and nowhere else."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from streamer.engine.checkpoint import Checkpoint
from streamer.engine.partition import Partition
from streamer.engine.processor import Processor
from streamer.engine.restore import Restore
from streamer.kafka import commit, writes
from streamer.kafka.restore import Restorer
from streamer.service.holding import Holding
from streamer.service.takeover import Takeover

PHASES: dict[str, tuple[Any, str, str, int]] = {
    # phase: (owner, function, before or after the call, which call of a run)
    "commit: sealed, nothing sent": (AIOKafkaProducer, "begin_transaction", "before", 3),
    "commit: transaction begun": (AIOKafkaProducer, "begin_transaction", "after", 3),
    "commit: some records handed over": (AIOKafkaProducer, "send_batch", "after", 5),
    "commit: all records handed over": (writes.Writes, "transaction", "after", 3),
    "commit: predictions acknowledged": (commit, "_delivered", "after", 5),
    "commit: all acknowledged": (commit, "_delivered", "after", 6),
    "commit: offsets sent": (AIOKafkaProducer, "send_offsets_to_transaction", "after", 3),
    "commit: ended, not yet known here": (AIOKafkaProducer, "commit_transaction", "after", 3),
    "commit: known here": (commit.Committer, "commit", "after", 3),
    "checkpoint: round begun": (Checkpoint, "begin", "after", 3),
    "checkpoint: slice copied": (Checkpoint, "slice", "after", 5),
    "checkpoint: replay point moved": (Checkpoint, "move", "after", 5),
    "checkpoint: sealed": (Processor, "seal", "after", 4),
    "recovery: before anything": (Takeover, "_run", "before", 1),
    "recovery: decided": (Restorer, "read", "before", 1),
    "recovery: part of the changelog read": (Restore, "apply", "after", 3),
    "recovery: changelog read": (Takeover, "_finish", "before", 1),
    "recovery: judged": (Restore, "finish", "after", 1),
    "recovery: partition taken up": (Partition, "begin", "after", 2),
    "recovery: replaying": (Processor, "ingest", "after", 1),
    "recovery: all live": (Holding, "take_over", "after", 20),
}


def arm(phase: str, count: int, mark: Path) -> None:
    owner, name, when, _ = PHASES[phase]
    function = getattr(owner, name)
    calls = 0

    def reached() -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            mark.write_text(phase)
            os._exit(86)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **options: Any) -> Any:
            if when == "before":
                reached()
            result = await function(*args, **options)
            if when == "after":
                reached()
            return result

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            if when == "before":
                reached()
            result = function(*args, **options)
            if when == "after":
                reached()
            return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    from streamer.cli import main

    phase, count, mark, *arguments = sys.argv[1:]
    arm(phase, int(count), Path(mark))
    sys.argv = ["streamer", *arguments]
    main()
