"""What the service shows of itself: Prometheus metrics, a snapshot for the status page, and structured logs.

``Telemetry`` is the observer of the service. It keeps what is true now (``health.State``) and what was counted (``Counts``);
metrics and status are made of these when they are asked for. Work per event is a share of one numpy call per poll or commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from streamer.core import Epoch, Outgoing
from streamer.errors import FencedError, KafkaSilentError, KafkaUnavailableError, RegistryUnavailableError
from streamer.observe.counts import Counts
from streamer.observe.health import State, gauges, health, lag, replayed, replaying, unready
from streamer.observe.logs import Errors, Rejected, log
from streamer.observe.metrics import Metrics
from streamer.observe.status import About, status
from streamer.observe.view import PartitionView, Siblings, View
from streamer.words import Outcome

_SNAPSHOT_S = 0.5
_BLOCKED_S = 5.0
"""Transactions of those who write the input are open for moments; one that is open for so long is told."""


class Telemetry:
    """Observer of the service, source of what HTTP serves. Written by the loop, read by any thread."""

    def __init__(
        self,
        models: Sequence[tuple[str, str, str]],
        version: str,
        *,
        facts: Mapping[str, str] | None = None,
        summary_interval_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``models``: (name, version, sha256) of what is served. ``facts``: what people want to know of this instance
        (group, topics); shown as it is, so it holds no secrets. The clocks are arguments for tests."""
        self._monotonic, self._wall = monotonic, wall
        self._summary_interval_s = summary_interval_s
        now = monotonic()
        self.about = About(list(models), version, dict(facts or {}))
        self.state = State(started=now)
        self.counts = Counts((name for name, *_ in models), now)
        self.errors = Errors()
        self._metrics = Metrics(self.about, self.state, self.counts, wall)
        self._rejected = Rejected()
        self._checkpoints = _Checkpoints()
        self._blocked: set[int] = set()
        self._other_machines: set[str] = set()
        self._failing = False
        self.beat_at = self._summary_at = now
        self._snapshot_at = 0.0
        self._summarised = (0, 0, 0)

    # the observer

    def ran(self, seconds: Sequence[float]) -> None:
        """Of each model call."""
        self.counts.runs.observe(seconds)

    def published(self, outgoing: Sequence[Outgoing], now_ms: int) -> None:
        self.counts.published(outgoing, now_ms)

    def committed(self, outcome: Outcome, epoch: Epoch, times: Any, changelog_bytes: int) -> None:
        self.counts.outcomes[outcome] += 1
        if outcome is not Outcome.COMMITTED:
            log.warning("commit_not_done", outcome=str(outcome), events=epoch.events)
            return
        self.counts.committed(epoch.report, times, changelog_bytes, self._wall())
        self._rejected.note(epoch.report.rejects, epoch.report.examples)
        self._rejected.age(self._monotonic())
        self.state.outage.over()

    def assigned(self, partitions: Sequence[int]) -> None:
        """Also told when the same is taken over again after a failure: that is no rebalance, however often it is tried."""
        state, owned = self.state, list(partitions)
        if not (self._failing and owned == state.assigned):
            self.counts.rebalances += 1
            log.info("rebalance", partitions=owned)
        state.ready = False
        state.assigned, state.assigned_at = owned, self._monotonic()
        state.restoring, state.begun, state.partitions, state.caught_up_s = {}, {}, {}, {}
        self._checkpoints.forget()

    def restoring(self, partition: int, progress: Any) -> None:
        done, total = progress.done - progress.begin, progress.end - progress.begin
        self.state.begun.setdefault(("restore", partition), (self._monotonic(), done))
        self.state.restoring[partition] = (done, total, progress.bytes_read)

    def recovered(self, partitions: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        state = self.state
        self.counts.restores.observe(seconds)
        read = sum(bytes_read for _, _, bytes_read in state.restoring.values())
        state.restoring = {}
        state.outage.over()
        state.ready = True
        self._failing = False
        self._snapshot_at = 0.0  # look again before the first commit, so that its checkpoint round is seen
        log.info("live", restored=list(partitions), kept=list(kept), seconds=round(seconds, 3), changelog_bytes=read)

    def failed(self, error: BaseException) -> None:
        """Kept for the status page and logged; the same error again is counted there, and logged once a minute."""
        wall_s = self._wall()
        self.errors.note(error, self._monotonic(), wall_s)
        if isinstance(error, KafkaUnavailableError):
            self.state.outage.failed(error, wall_s, self.counts.last_commit_s)
            self._failing = True
        elif not isinstance(error, FencedError | RegistryUnavailableError):
            self.state.ending = str(error) or type(error).__name__

    def siblings(self, found: Siblings | None, silent: KafkaSilentError | None = None) -> None:
        """The group as its coordinator described it; None: it did not. ``silent``: nobody answers. Who has no partitions
        fetches nothing, so this is all that tells it of an outage."""
        self.state.siblings = found
        if self.state.assigned == []:
            if silent is not None:
                self.failed(silent)
            elif found is not None:
                self.state.outage.over()

    def tick(self, look: Callable[[], View]) -> None:
        """Every turn of the loop; looks twice a second."""
        now = self._monotonic()
        self.beat_at = now
        if now - self._snapshot_at < _SNAPSHOT_S:
            return
        self._snapshot_at = now
        self._look(look(), now)
        self._age(now)

    def beat(self, late_s: float) -> None:
        """From a timer on the loop, which also runs during restores and outages: it was ``late_s`` later than asked."""
        self.beat_at = self._monotonic()
        self.counts.loop_lag.add(max(late_s, 0.0))
        self._age(self.beat_at)

    # what follows from a look and from the time

    def _look(self, view: View, now: float) -> None:
        state, parts = self.state, view.partitions
        state.view, state.ready, state.draining = view, view.ready, view.draining
        if view.waits_for is None:  # who waits for schemas fetches nothing
            state.outage.looked([each.confirmed_s for each in parts.values()], self._wall(), ready=view.ready)
        for number, each in parts.items():
            if each.log_end is not None and not each.lag:
                state.caught_up_s[number] = each.confirmed_s
            if replaying(each):
                state.begun.setdefault(("replay", number), (now, replayed(each)[0]))
        state.partitions = parts
        self._note_blocked(parts)
        self._note_machines(view.other_machines)
        self._checkpoints.look(parts, self.counts.checkpoint_bytes)

    def _note_blocked(self, partitions: Mapping[int, PartitionView]) -> None:
        """One line when an open transaction of somebody else holds a partition for long, and one when that is over."""
        blocked = {number for number, each in partitions.items() if each.blocked_s > _BLOCKED_S}
        for number in sorted(blocked - self._blocked):
            log.warning(
                "blocked",
                partition=number,
                offset=partitions[number].next_offset,
                seconds=round(partitions[number].blocked_s, 1),
                cause="a producer of the input has a transaction open there: records behind it cannot be read before it ends",
            )
        for number in sorted(self._blocked - blocked):
            log.info("unblocked", partition=number)
        self._blocked = blocked

    def _note_machines(self, others: Mapping[int, str]) -> None:
        """One line per kind of machine that computed before us what we go on with."""
        for other in sorted(set(others.values()) - self._other_machines):
            log.warning(
                "another_machine",
                before=other,
                now=self.about.facts.get("machine", ""),
                partitions=sorted(number for number, each in others.items() if each == other),
                effect="states go on; the last digits of answers may differ from those that the machine before would give",
            )
            self._other_machines.add(other)

    def _age(self, now: float) -> None:
        """What depends on the time alone: rates, what counts as recent, lines that are due."""
        self.counts.age(now)
        self._rejected.age(now)
        if now - self._summary_at >= self._summary_interval_s:
            self._summarise(now - self._summary_at)
            self._summary_at = now

    def _summarise(self, seconds: float) -> None:
        counts = self.counts
        counted = (counts.records, counts.predictions, sum(counts.rejected.values()))
        records, predictions, rejected = (new - old for new, old in zip(counted, self._summarised, strict=True))
        self._summarised = counted
        log.info(
            "summary",
            health=str(health(self.state)),
            seconds=round(seconds, 1),
            records=records,
            predictions=predictions,
            rejected=rejected,
            per_second=round(predictions / seconds, 1),
            lag=lag(self.state),
            latency_s=counts.recent_latency((0.5, 0.99)),
            **gauges(self.state.view),
        )

    # what others read

    def metrics(self) -> bytes:
        """Prometheus text format."""
        return self._metrics.text()

    def status(self, stuck_s: float | None = None) -> dict[str, Any]:
        """Plain values for JSON. ``stuck_s``: how long the loop has been standing still, if it does."""
        return status(
            self.about,
            self.state,
            self.counts,
            list(self.errors.kept),
            now=self._monotonic(),
            wall_s=self._wall(),
            stuck_s=stuck_s,
        )

    def unready(self) -> str | None:
        """Why this instance is not to be counted on; None when it is."""
        return unready(self.state, self._wall())


class _Checkpoints:
    """One line when the checkpoint rounds of all partitions are written: they begin together."""

    def __init__(self) -> None:
        self._rounds: dict[int, int] = {}
        self._ended: list[int] = []
        self._bytes = 0

    def forget(self) -> None:
        self._rounds = {}

    def look(self, partitions: Mapping[int, PartitionView], bytes_written: int) -> None:
        for partition, each in partitions.items():
            if each.checkpointed > self._rounds.setdefault(partition, each.checkpointed):
                self._rounds[partition] = each.checkpointed
                self._ended.append(partition)
        if self._ended and not any(each.round_open for each in partitions.values()):
            spent, self._bytes = bytes_written - self._bytes, bytes_written
            self._say(partitions.values(), spent)

    def _say(self, partitions: Iterable[PartitionView], spent: int) -> None:
        behind = [each.position - each.replay_point for each in partitions]
        replay = max(behind, default=0)  # all partitions may have gone meanwhile, with an outage or a rebalance
        log.info("checkpoint", partitions=sorted(set(self._ended)), bytes=spent, longest_replay_records=replay)
        self._ended = []
