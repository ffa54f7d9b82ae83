"""The transaction coordinator: producer ids, epochs, fencing, time-outs, and markers that take their time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.broker import Cluster

NONE, INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE = 0, 47, 48
INVALID_PRODUCER_ID_MAPPING, INVALID_TRANSACTION_TIMEOUT, CONCURRENT_TRANSACTIONS = 49, 50, 51
UNKNOWN_TOPIC_OR_PARTITION, OPERATION_NOT_ATTEMPTED = 3, 55
_MAX_EPOCH = 32_766
_MAX_TIMEOUT_MS = 900_000

EMPTY, ONGOING, PREPARE_COMMIT, PREPARE_ABORT, COMPLETE_COMMIT, COMPLETE_ABORT = (
    "empty", "ongoing", "prepare-commit", "prepare-abort", "complete-commit", "complete-abort",
)  # fmt: skip


@dataclass(slots=True)
class Transactional:
    """What the coordinator keeps of one transactional id."""

    name: str
    producer: int
    epoch: int = 0
    timeout_ms: int = 60_000
    state: str = EMPTY
    partitions: set[tuple[str, int]] = field(default_factory=set)
    groups: dict[str, None] = field(default_factory=dict)
    since_s: float = 0.0
    used_s: float = 0.0


class Transactions:
    """All transactional ids of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.known: dict[str, Transactional] = {}
        self._next_producer = 1_000
        self.marker_delay_s = (0.001, 0.008)
        self.check_every_s = 10.0
        self.cluster.loop.after(self.check_every_s, self._check_timeouts)

    def new_producer(self) -> int:
        self._next_producer += 1
        return self._next_producer

    def init(self, name: str | None, timeout_ms: int) -> tuple[int, int, int]:
        """(error code, producer id, epoch)"""
        if name is None:
            return NONE, self.new_producer(), 0
        if timeout_ms > _MAX_TIMEOUT_MS or timeout_ms <= 0:
            return INVALID_TRANSACTION_TIMEOUT, -1, -1
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = Transactional(name, self.new_producer(), timeout_ms=timeout_ms)
            found.used_s = self.cluster.loop.now
            return NONE, found.producer, 0
        if found.state in (PREPARE_COMMIT, PREPARE_ABORT):
            return CONCURRENT_TRANSACTIONS, -1, -1
        if found.state == ONGOING:
            self._fence(found)
            return CONCURRENT_TRANSACTIONS, -1, -1
        found.epoch += 1
        if found.epoch >= _MAX_EPOCH:
            found.producer, found.epoch = self.new_producer(), 0
        found.state, found.timeout_ms, found.used_s = EMPTY, timeout_ms, self.cluster.loop.now
        return NONE, found.producer, found.epoch

    def _fence(self, found: Transactional) -> None:
        found.epoch += 1
        self._prepare(found, commit=False)

    def _checked(self, name: str, producer: int, epoch: int) -> tuple[int, Transactional | None]:
        found = self.known.get(name)
        if found is None or found.producer != producer:
            return INVALID_PRODUCER_ID_MAPPING, None
        if found.epoch != epoch:
            return INVALID_PRODUCER_EPOCH, None
        return NONE, found

    def add(
        self, name: str, producer: int, epoch: int, partitions: list[tuple[str, int]]
    ) -> dict[tuple[str, int], int]:
        """Error code per partition."""
        missing = [each for each in partitions if self.cluster.log(*each) is None]
        if missing:
            return {
                each: UNKNOWN_TOPIC_OR_PARTITION if each in missing else OPERATION_NOT_ATTEMPTED for each in partitions
            }
        code, found = self._checked(name, producer, epoch)
        if found is not None:
            code = self._open(found)
            if code == NONE:
                found.partitions.update(partitions)
        return dict.fromkeys(partitions, code)

    def add_group(self, name: str, producer: int, epoch: int, group: str) -> int:
        code, found = self._checked(name, producer, epoch)
        if found is None:
            return code
        code = self._open(found)
        if code == NONE:
            found.groups[group] = None
        return code

    def _open(self, found: Transactional) -> int:
        if found.state in (PREPARE_COMMIT, PREPARE_ABORT):
            return CONCURRENT_TRANSACTIONS
        found.used_s = self.cluster.loop.now
        if found.state != ONGOING:
            found.state, found.since_s = ONGOING, self.cluster.loop.now
            found.partitions, found.groups = set(), {}
        return NONE

    def verify(self, name: str | None, producer: int, epoch: int, partition: tuple[str, int]) -> int:
        """Whether a transactional batch may be appended: its partition must be in an open transaction."""
        code, found = self._checked(name or "", producer, epoch)
        if found is None:
            return code
        if found.state in (PREPARE_COMMIT, PREPARE_ABORT):
            return INVALID_TXN_STATE
        return NONE if found.state == ONGOING and partition in found.partitions else INVALID_TXN_STATE

    def end(self, name: str, producer: int, epoch: int, *, commit: bool) -> int:
        code, found = self._checked(name, producer, epoch)
        if found is None:
            return code
        if found.state == ONGOING:
            self._prepare(found, commit=commit)
            return NONE
        done, doing = (COMPLETE_COMMIT, PREPARE_COMMIT) if commit else (COMPLETE_ABORT, PREPARE_ABORT)
        if found.state == done:
            return NONE
        return CONCURRENT_TRANSACTIONS if found.state == doing else INVALID_TXN_STATE

    def _prepare(self, found: Transactional, *, commit: bool) -> None:
        """From here on the outcome is decided; markers follow."""
        found.state = PREPARE_COMMIT if commit else PREPARE_ABORT
        self.cluster.note(f"transaction {found.name} {'commits' if commit else 'aborts'}")
        self._mark_later(found, commit=commit, left=sorted(found.partitions), groups=list(found.groups))

    def _mark_later(
        self, found: Transactional, *, commit: bool, left: list[tuple[str, int]], groups: list[str]
    ) -> None:
        """One marker at a time: readers see the partitions of a transaction change one after the other."""
        loop, producer, epoch = self.cluster.loop, found.producer, found.epoch

        def step() -> None:
            if left:
                log = self.cluster.log(*left.pop(0))
                if log is not None:
                    log.marker(producer, epoch, commit=commit, now_ms=self.cluster.now_ms())
            elif groups:
                self.cluster.groups.end_transaction(groups.pop(0), producer, commit=commit)
            if left or groups:
                loop.after(loop.rng.uniform(0.0, self.marker_delay_s[1] / 4), step)
                return
            found.state = COMPLETE_COMMIT if commit else COMPLETE_ABORT
            found.partitions, found.groups = set(), {}
            self.cluster.after_marker(found.name)

        loop.after(loop.rng.uniform(*self.marker_delay_s), step)

    def _check_timeouts(self) -> None:
        loop = self.cluster.loop
        for found in list(self.known.values()):
            if found.state == ONGOING and (loop.now - found.since_s) * 1000 > found.timeout_ms:
                self.cluster.note(f"transaction {found.name} timed out")
                self._fence(found)
        loop.after(self.check_every_s, self._check_timeouts)

    def undecided(self) -> list[str]:
        """Ids whose transaction is open: what lies behind its records is invisible until it ends, or times out."""
        return [found.name for found in self.known.values() if found.state in (ONGOING, PREPARE_COMMIT, PREPARE_ABORT)]

    def expire(self, prefix: str = "") -> int:
        """Forgets ids that are not in a transaction (transactional.id.expiration.ms). Returns how many."""
        gone = [
            found.name
            for found in self.known.values()
            if found.name.startswith(prefix) and found.state in (EMPTY, COMPLETE_COMMIT, COMPLETE_ABORT)
        ]
        for name in gone:
            del self.known[name]
        return len(gone)
