"""Open windows of one partition: which window an event falls into, when each closes, and what is late.

A pure function of the order of the log and of the idle advances, judged record by record, so nothing of it is stored: a
replay from the oldest event of an open window, with the watermark that held there, rebuilds it. What makes that exact:

- Lateness is judged before a record moves the watermark; then come its closings by arrival and by bounds, then by time.
- A window closed by arrival (``count``, ``end``) or by a bound (``full``, ``span``, ``limit``) closes every window of
  its stream, and the stream's ``through`` is written with the predictions: a replay skips its events up to there.
- During replay bounds do not act, only time closes: sessions that an earlier event had merged may stand apart there.
- A command carries no event and so no event time: it never moves the watermark. ``end`` closes the stream's windows in
  every kind. ``reset`` and ``generate`` do nothing: every window starts from the initial state anyway.

Invariant 6: the watermark never goes back, a closed window never reopens, every event is in a window or late.
"""

from __future__ import annotations

from streamer.windows.assign import START, Added, Windows
from streamer.windows.record import EachRecord
from streamer.windows.rule import WindowRule
from streamer.windows.traces import Traces

__all__ = ["START", "Added", "EachRecord", "Traces", "WindowRule", "Windows"]
