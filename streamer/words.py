"""The vocabularies: every fixed set of words that settings, records, metrics and messages share. Each member is its text."""

from __future__ import annotations

from enum import StrEnum


class Delivery(StrEnum):
    """How often an answer may come, and what survives a restart."""

    EXACTLY_ONCE = "exactly-once"
    AT_LEAST_ONCE = "at-least-once"
    EPHEMERAL = "ephemeral"

    @property
    def durable(self) -> bool:
        """State survives: there is a changelog."""
        return self is not Delivery.EPHEMERAL


class ModelChanged(StrEnum):
    """What becomes of states that another model file wrote."""

    REFUSE = "refuse"
    KEEP = "keep"
    RESET = "reset"


class Mode(StrEnum):
    """Which kind of answer."""

    STEP = "step"
    WINDOW = "window"
    GENERATE = "generate"


class Stage(StrEnum):
    """Where the time of an epoch goes; each begins where the one before ends."""

    FETCH = "fetch"
    DECODE = "decode"
    WAIT = "wait"
    RUN = "run"
    ENCODE = "encode"
    COMMIT = "commit"


class Outcome(StrEnum):
    """How a commit ended."""

    COMMITTED = "committed"
    FENCED = "fenced"
    FAILED = "failed"


class Closed(StrEnum):
    """Why a window closed."""

    TIME = "time"
    COUNT = "count"
    END = "end"
    FULL = "full"
    SPAN = "span"
    LIMIT = "limit"
    RECORD = "record"


class Forgotten(StrEnum):
    """Why a stream's state was forgotten."""

    IDLE = "idle"
    MEMORY = "memory"
    END = "end"


class Decoder(StrEnum):
    """Which code reads records."""

    AUTO = "auto"
    PYTHON = "python"
    NATIVE = "native"


class KeyForm(StrEnum):
    """What the bytes of a record's key are."""

    UTF8 = "utf8"
    INT32 = "int32"
    INT64 = "int64"
    UUID = "uuid"
    HEX = "hex"
    BASE64 = "base64"


class TimeUnit(StrEnum):
    """What the event time of a value counts, since 1970; or it is text."""

    MS = "ms"
    S = "s"
    US = "us"
    NS = "ns"
    ISO8601 = "iso8601"


class AnswerFormat(StrEnum):
    """How predictions are written."""

    JSON = "json"
    AVRO = "avro"
    JSON_SCHEMA = "json-schema"
    FLOAT32 = "float32"


class Reason(StrEnum):
    """Why a record was rejected: the header ``streamer-error`` and the metric's label."""

    UNDECODABLE = "undecodable"
    WRONG_WIDTH = "wrong_width"
    MISSING_FEATURE = "missing_feature"
    NOT_FINITE = "not_finite"
    NOT_EXACT = "not_exact"
    UNKNOWN_CATEGORY = "unknown_category"
    UNKNOWN_SCHEMA = "unknown_schema"
    MISSING_KEY = "missing_key"
    BAD_KEY = "bad_key"
    MISSING_VALUE = "missing_value"
    TOO_LARGE = "too_large"
    BAD_TIME = "bad_time"
    UNKNOWN_COMMAND = "unknown_command"
    LATE = "late"
    MODEL_REFUSED = "model_refused"
    BAD_REQUEST = "bad_request"
    TOO_LONG = "too_long"
    TOO_MANY_ROLLOUTS = "too_many_rollouts"
    TOO_LARGE_ANSWER = "too_large_answer"


FLEETING = frozenset({Reason.UNKNOWN_SCHEMA})
"""Reasons that were true when they were given and may not be later: what was decided by them is remembered for replays."""
