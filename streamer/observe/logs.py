"""Logs: one line each on stderr, JSON unless a terminal reads them. What repeats is said once a minute."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from streamer.core import Source
from streamer.words import Reason

REPEAT_S = 60.0
"""The same again is counted, and logged once in this time."""
_ERRORS_KEPT = 20
_DETAIL_CHARACTERS = 300

log = structlog.stdlib.get_logger("streamer")


class Errors:
    """The last errors that differ. One that comes again is counted, and logged once a minute."""

    def __init__(self) -> None:
        self.kept: deque[dict[str, Any]] = deque(maxlen=_ERRORS_KEPT)
        self.logged: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return repr([entry["text"] for entry in self.kept])

    def note(self, error: BaseException, now: float, wall_s: float) -> None:
        kind, text = type(error).__name__, str(error)
        known = next((entry for entry in self.kept if (entry["kind"], entry["text"]) == (kind, text)), None)
        count = 1
        if known is not None:
            self.kept.remove(known)
            count += known["count"]
        self.kept.append({"at_ms": int(wall_s * 1000), "kind": kind, "text": text, "count": count})
        if now - self.logged.get((kind, text), -REPEAT_S) >= REPEAT_S:
            if len(self.logged) >= _ERRORS_KEPT:
                self.logged.pop(min(self.logged, key=self.logged.__getitem__))
            self.logged[kind, text] = now
            log.error("failed", kind=kind, error=text, times=count)


class Rejected:
    """Per reason one line a minute: how many since the last one, and the newest of them as an example."""

    def __init__(self) -> None:
        self._waiting: dict[Reason, tuple[int, Source]] = {}
        self._logged: dict[Reason, float] = {}

    def note(self, counts: Mapping[Reason, int], examples: Mapping[Reason, Source]) -> None:
        for reason, example in examples.items():
            before = self._waiting.get(reason, (0, example))[0]
            self._waiting[reason] = before + counts[reason], example

    def age(self, now: float) -> None:
        """Says what is due."""
        for reason, (count, example) in list(self._waiting.items()):
            if now - self._logged.get(reason, -REPEAT_S) < REPEAT_S:
                continue
            self._logged[reason] = now
            del self._waiting[reason]
            log.warning(
                "rejected",
                reason=str(reason),
                count=count,
                partition=example.partition,
                offset=example.offset,
                detail=example.detail[:_DETAIL_CHARACTERS],
            )


class Repeats(logging.Filter):
    """Lets a message of the Kafka client through once a minute: while brokers are away it says the same many times."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        now, key = self._monotonic(), (record.name, str(record.msg))
        if now - self._last.get(key, -REPEAT_S) < REPEAT_S:
            return False
        self._last[key] = now  # as many as the client has messages: its texts are templates
        return True


def rounded(value: Any) -> Any:
    """Floats as people read them, also inside of lists and mappings: three decimals, below 1 four digits that count."""
    if isinstance(value, float):
        return round(value, 3) if abs(value) >= 1 else float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _rounding(_: Any, __: str, line: Any) -> Any:
    return {key: rounded(value) if not key.startswith("_") else value for key, value in line.items()}


def configure_logs(level: str, style: str = "auto") -> bool:
    """Logs on stderr, one line each: JSON unless stderr is a terminal. ``style``: auto | json | console. Whether JSON."""
    plain = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if plain else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, _rounding, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)  # else they are written as they are, between the JSON lines
    # never below: at level debug the client writes whole requests, the password of SASL PLAIN among them
    logging.getLogger("aiokafka").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    return not plain
