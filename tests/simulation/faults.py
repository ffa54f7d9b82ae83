"""What can go wrong with a request: refused, late, taken but not answered, lost, or the end of who asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BEFORE = ("error", "late", "dropped", "cut")
AFTER = ("lost", "late-answer", "kill")

ERRORS: dict[int, tuple[int, ...]] = {
    0: (6, 7, 3, 19), 1: (6, 3), 2: (6, 5), 3: (), 8: (14, 15, 16, 27, 7), 9: (14, 16), 10: (15,), 11: (14, 15, 16, 25),
    12: (15, 16, 27, 25), 13: (16,), 14: (15, 16, 27, 25), 19: (7,), 22: (14, 15, 16, 51), 24: (14, 15, 16, 51, 3),
    25: (14, 15, 16, 51), 26: (14, 15, 16, 51), 28: (14, 15, 16, 3, 7, 25, 22), 32: (),
}  # fmt: skip
"""API key -> what a broker really answers when it does not do it: not leader, time-out, unknown topic (metadata not there
yet), loading, not available, not coordinator, rebalance, unknown member, concurrent transactions, ..."""


@dataclass
class Rule:
    """One kind of trouble for matching requests. ``value``: error code, or seconds."""

    apis: tuple[int, ...]
    action: str
    value: float = 0
    member: str | None = None
    skip: int = 0
    """Matching requests that are let through first"""
    count: int = 1
    until: float = float("inf")
    topic: str | None = None
    """Only requests that name it"""

    def matches(self, api: int, member: str, now: float, request: dict[str, Any]) -> bool:
        if now > self.until or self.count <= 0 or (self.apis and api not in self.apis):
            return False
        if self.member is not None and member != self.member:
            return False
        if self.topic is not None and self.topic not in {
            each["topic"] for each in request.get("topics") or () if isinstance(each, dict) and "topic" in each
        }:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.count -= 1
        return True


class Faults:
    """The rules that hold now."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.seen: Callable[[Rule, str, str], None] = lambda rule, api, member: None

    def pick(self, api: int, member: str, now: float, request: dict[str, Any]) -> Rule | None:
        if not self.rules:
            return None
        found = next((rule for rule in self.rules if rule.matches(api, member, now, request)), None)
        self.rules = [rule for rule in self.rules if rule.count > 0 and rule.until >= now]
        return found


def refusal(api: int, request: dict[str, Any], code: int) -> dict[str, Any]:
    """The answer that says ``code`` wherever an error can be said."""
    topics = request.get("topics") or []
    if api in (0, 1, 2, 8, 9, 24, 28):
        rows = []
        for topic in topics:
            parts = [part if isinstance(part, int) else part["partition"] for part in topic["partitions"] or ()]
            each = [_row(api, part, code) for part in parts]
            rows.append(
                {"topic": topic["topic"], "topics": topic["topic"], "partitions": each, "partition_errors": each}
            )
        return {"topics": rows, "errors": rows, "session_id": 0}
    if api == 19:
        return {"topic_errors": [{"topic": t["topic"], "error_code": code} for t in request["create_topic_requests"]]}
    if api == 11:
        member = request["member_id"]
        return {"error_code": code, "generation_id": -1, "group_protocol": "", "leader_id": "", "member_id": member}
    if api == 10:
        return {"error_code": code, "coordinator_id": -1, "host": "", "port": -1}
    return {"error_code": code, "producer_id": -1, "producer_epoch": -1, "member_assignment": b""}


def _row(api: int, partition: int, code: int) -> dict[str, Any]:
    row: dict[str, Any] = {"partition": partition, "error_code": code, "offset": -1, "timestamp": -1, "metadata": ""}
    if api == 1:
        row |= {"highwater_offset": -1, "last_stable_offset": -1, "log_start_offset": -1, "preferred_read_replica": -1}
        row["message_set"] = b""
    return row
