"""The frozen tree of settings: what each key is, its bounds, its default, and what must fit together. Nothing is read here.

Long: every key that people can set, in the order of the reference; a key takes three lines, and nothing else is here.
"""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from streamer.settings.base import LONGEST_MS, TLS_FILES, Section, check_bootstrap, check_model_name, check_topic
from streamer.settings.fields import (
    FieldHeader,
    FieldPath,
    Missing,
    Place,
    parse_answer_place,
    parse_field,
    parse_place,
)
from streamer.settings.registry import RegistrySection
from streamer.settings.times import check_moment, parse_moment
from streamer.settings.utterance import UtteranceSection
from streamer.settings.window import WindowSection
from streamer.words import AnswerFormat, Delivery, ModelChanged

_ANSWER_OVERHEAD_BYTES = 8_192
"""Key, headers and framing beside a generated sequence"""
_MAX_FLOAT32 = 3.4028234663852886e38


def _as_text(value: object) -> object:
    """TOML has times and numbers of its own: both are taken as if they were quoted."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Moment = Annotated[str, BeforeValidator(_as_text)]


class KafkaSection(Section):
    bootstrap: Annotated[str, AfterValidator(check_bootstrap)] = Field(
        min_length=1, description="Brokers to start from, HOST:PORT, comma separated"
    )
    group: str = Field(min_length=1, description="Consumer group: names the service and owns its positions")
    instance: str = Field(default="", description="Instance id, random per process unless set")
    static_membership: bool = Field(
        default=False, description="Join as a static member (rolling restarts without rebalance)"
    )
    client_id: str = Field(default="streamer", description="Client id in broker logs and quotas")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How connections are secured"
    )
    ssl_cafile: Path | None = Field(
        default=None, description="CA certificates (PEM) that sign the brokers' certificates"
    )
    ssl_certfile: Path | None = Field(default=None, description="Client certificate (PEM) for mutual TLS")
    ssl_keyfile: Path | None = Field(default=None, description="Key (PEM) of the client certificate")
    ssl_key_password: SecretStr | None = Field(default=None, description="Password of the key")
    ssl_key_password_file: Path | None = Field(default=None, description="File that holds the password of the key")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="SASL mechanism"
    )
    sasl_username: str | None = Field(default=None, description="SASL user")
    sasl_password: SecretStr | None = Field(default=None, description="SASL password")
    sasl_password_file: Path | None = Field(default=None, description="File that holds the SASL password")
    session_timeout_ms: int = Field(
        default=45_000, ge=6_000, le=1_800_000, description="A silent member is evicted after this"
    )
    heartbeat_interval_ms: int = Field(default=3_000, ge=100, le=60_000, description="Time between heartbeats")
    rebalance_timeout_ms: int = Field(default=60_000, ge=5_000, le=600_000, description="Bound on a member's hand-over")
    request_timeout_ms: int = Field(default=40_000, ge=1_000, le=300_000, description="Bound on one request")
    connect_timeout_ms: int = Field(default=30_000, ge=500, le=600_000, description="Bound on connecting at start")
    metadata_max_age_ms: int = Field(
        default=60_000, ge=100, le=600_000, description="How often leaders and partition counts are looked up anew"
    )
    retry_backoff_ms: int = Field(default=100, ge=1, le=10_000, description="Wait before a request is tried again")
    fetch_max_wait_ms: int | None = Field(
        default=None,
        ge=1,
        le=5_000,
        description="Longest wait of a fetch for fetch_min_bytes; default 24 exactly-once, else 11",
    )
    fetch_min_bytes: int = Field(
        default=100_000, ge=1, le=52_428_800, description="A fetch answers when this much is there"
    )
    fetch_max_bytes: int = Field(default=8_388_608, ge=1_024, le=104_857_600, description="Bound on one fetch answer")
    max_partition_fetch_bytes: int = Field(
        default=2_097_152, ge=1_024, le=104_857_600, description="Bound per partition; above the largest record"
    )
    check_crcs: bool = Field(default=True, description="Verify the checksum of every fetched batch")

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaSection:
        wrong = []
        if self.heartbeat_interval_ms * 2 > self.session_timeout_ms:
            wrong.append("heartbeat_interval_ms must be at most half of session_timeout_ms")
        if self.static_membership and not self.instance:
            wrong.append("static_membership needs instance: a random one would leave a dead member at every restart")
        if "SSL" not in self.security_protocol:
            given = [name for name in TLS_FILES if getattr(self, name) is not None]
            if given:
                wrong.append(f"{', '.join(given)}: not used with security_protocol = {self.security_protocol}")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            wrong.append("ssl_keyfile needs ssl_certfile")
        sasl = self.security_protocol.startswith("SASL")
        password = self.sasl_password is not None or self.sasl_password_file is not None
        if sasl and not (self.sasl_username and password):
            wrong.append(f"{self.security_protocol} needs sasl_username and sasl_password or sasl_password_file")
        if not sasl and (self.sasl_username or password):
            wrong.append(f"sasl_*: not used with security_protocol = {self.security_protocol}")
        for name in ("sasl_password", "ssl_key_password"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                wrong.append(f"{name} and {name}_file are both set: keep one")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class InputSection(Section):
    topic: str = Field(min_length=1, description="Topic with one record per event, keyed by stream")
    format: str = Field(
        default="json",
        description="json, json-named, msgpack, float32, avro, protobuf, json-schema, or a decoder MODULE:FUNCTION",
    )
    schema_file: Path | None = Field(
        default=None,
        description="avro: schema (JSON), protobuf: descriptor set. With registry.url what values are read as, else what all "
        "are written by, without a registry's frame",
    )
    message: str = Field(default="", description="protobuf with schema_file: full name of the message")
    decoder: Literal["auto", "python", "native"] = Field(
        default="auto",
        description="Code that reads batches, JSON and flat Avro, and writes answers: native (the wheel streamer-rnn-native), python, or "
        "auto: native where it is installed. What records mean is the same",
    )
    key: Literal["utf8", "int32", "int64", "uuid", "hex", "base64"] = Field(
        default="utf8", description="What keys are; streams have this text as their name everywhere"
    )
    start: Moment = Field(
        default="earliest", description="First start: earliest, latest, or a time (ISO 8601, ms since 1970)"
    )
    max_record_bytes: int = Field(
        default=1_048_576, ge=1, le=104_857_600, description="Larger values are dead-lettered"
    )
    max_record_steps: int = Field(
        default=4_096,
        ge=1,
        le=1_000_000,
        description="Steps of a record, for models that take several; more are dead-lettered",
    )
    missing: float | Literal["reject"] = Field(
        default="reject", description="Null features without a rule in the contract: reject, or this number"
    )
    fields: dict[str, str | dict[str, float | int | bool | str]] = Field(
        default={},
        description="Formats with names: feature -> its place: a path (`readings.cpu`, `tags[0]`), `header:NAME`, "
        '`{constant = 3.5}`, or with a rule of its own `{path = "readings.cpu", missing = "last"}` (`reject`, `last`, a '
        "number); default: the field of its name. The key stays the record's key",
    )
    time: str = Field(
        default="", description="Formats with names: place of the event's time, a path or `header:NAME`; default `ts`"
    )
    time_unit: Literal["ms", "s", "us", "ns", "iso8601"] = Field(
        default="ms", description="What an event's own time is: a number since 1970 in this unit, or ISO 8601 text"
    )
    min_time: Moment = Field(
        default="2000-01-01T00:00:00Z",
        description="Reject earlier event times (ISO 8601, ms since 1970): most are in another unit",
    )
    max_future_ms: int | None = Field(
        default=3_600_000,
        ge=0,
        le=LONGEST_MS,
        description="Reject event times further ahead of the record: one would close every window",
    )
    late: Literal["drop", "dead-letter"] = Field(
        default="drop", description="Events behind the watermark (window mode)"
    )

    @field_validator("missing", mode="before")
    @classmethod
    def _missing_is_a_number(cls, value: object) -> object:
        """One sentence instead of one per branch of the union. Models take float32: more is infinite to them."""
        if value == "reject":
            return value
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= _MAX_FLOAT32:
            raise ValueError(
                f"{str(value)[:80]!r} is neither reject nor a finite float32: states that take NaN or infinity stay so"
            )
        return number

    @field_validator("fields", mode="before")
    @classmethod
    def _fields_are_places(cls, value: object) -> object:
        """One sentence instead of one per branch of the union."""
        if not isinstance(value, dict):
            raise ValueError("is no table: write [input.fields] with a line for each feature that is elsewhere")
        for feature, written in value.items():
            try:
                parse_field(written)
            except ValueError as error:
                raise ValueError(f"{str(feature)[:80]!r} {error}") from None
        return value

    @field_validator("time")
    @classmethod
    def _time_is_a_place(cls, value: str) -> str:
        if value:
            parse_place(value)
        return value

    @property
    def places(self) -> dict[str, Place]:
        """Where features are that are not in the field of their name."""
        found = {feature: parse_field(written)[0] for feature, written in self.fields.items()}
        return {feature: place for feature, place in found.items() if place is not None}

    @property
    def missing_rules(self) -> dict[str, Missing]:
        """What stands for missing features, instead of what the contract says."""
        found = {feature: parse_field(written)[1] for feature, written in self.fields.items()}
        return {feature: rule for feature, rule in found.items() if rule is not None}

    @property
    def time_place(self) -> Place | None:
        return parse_place(self.time) if self.time else None

    @model_validator(mode="after")
    def _times_are_moments(self) -> InputSection:
        check_moment(self.min_time, "min_time")
        self.start_position()
        return self

    @property
    def min_time_ms(self) -> int:
        return parse_moment(self.min_time, "min_time")

    def start_position(self) -> str:
        """earliest, latest, or milliseconds since 1970 as text. Raises ValueError."""
        if self.start in ("earliest", "latest"):
            return self.start
        return str(check_moment(self.start, "start", self.min_time_ms))


class OutputSection(Section):
    topic: str = Field(min_length=1, description="Topic of the predictions")
    format: AnswerFormat = Field(
        default=AnswerFormat.JSON,
        description="Value format of predictions; avro and json-schema in the frame of registry.url",
    )
    fields: dict[str, str] = Field(
        default={},
        description="What predictions carry and how they call it: name -> place, a place of the prediction (`stream`, `ts`, "
        "`y`, `label`, `model`, `window.end`, also `partition` and `offset` of its source), or of its record `input.PATH` or "
        "`header:NAME` (null where it is missing; at most 8192 bytes of one record). Default: all of its own, as they are called",
    )
    timestamp: Literal["record", "now"] = Field(
        default="record", description="Timestamp of predictions: their record's, or when they are written"
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="none", description="Compression of everything that is written"
    )
    max_batch_bytes: int = Field(default=524_288, ge=16_384, le=10_485_760, description="Bound on one record batch")

    @field_validator("fields")
    @classmethod
    def _fields_are_places(cls, value: dict[str, str]) -> dict[str, str]:
        for name, written in value.items():
            try:
                parse_answer_place(written)
            except ValueError as error:
                raise ValueError(f"{name[:80]!r} {error}") from None
            if not name:
                raise ValueError(f"{written!r} has no name: write name = {written!r}")
            if name == "slice" and written != "slice":
                raise ValueError(
                    "'slice' is what pieces of a prediction that was cut say of themselves: use another name"
                )
        if twice := sorted({each for each in value.values() if list(value.values()).count(each) > 1}):
            raise ValueError(f"{twice[0][:80]!r} is carried twice: leave one out")
        return value

    @property
    def places(self) -> dict[str, str | FieldPath | FieldHeader]:
        """Name -> what is carried: a place of the prediction, or of its record."""
        return {name: parse_answer_place(written) for name, written in self.fields.items()}

    @property
    def passed(self) -> list[FieldPath | FieldHeader]:
        """What predictions carry of their records."""
        return [place for place in self.places.values() if not isinstance(place, str)]


class DeadLetterSection(Section):
    enabled: bool = Field(default=True, description="Keep rejects; false: they are only counted")
    topic: str = Field(default="", description="Topic of the rejects; default <input>.dlq")


class ChangelogSection(Section):
    topic: str = Field(default="", description="Compacted topic of states; default <group>.<input>.changelog")
    replication_factor: int = Field(default=-1, ge=-1, le=32_767, description="When created; -1: as the input's")
    segment_ms: int = Field(default=600_000, ge=100, description="When created: segment.ms")
    segment_bytes: int = Field(default=67_108_864, ge=1_048_576, description="When created: segment.bytes")
    min_cleanable_dirty_ratio: float = Field(
        default=0.1, ge=0, le=1, description="When created: min.cleanable.dirty.ratio"
    )
    max_compaction_lag_ms: int = Field(default=3_600_000, ge=1, description="When created: max.compaction.lag.ms")
    delete_retention_ms: int = Field(default=86_400_000, ge=0, description="When created: delete.retention.ms")


class TopicsSection(Section):
    create: bool = Field(default=True, description="Create missing output, dead-letter and changelog topics")
    replication_factor: int = Field(default=-1, ge=-1, le=32_767, description="When created; -1: as the input's")


class DeliverySection(Section):
    mode: Delivery = Field(default=Delivery.EXACTLY_ONCE, description="Delivery")
    commit_interval_ms: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Longest time between commits under load; default 100 exactly-once, else 500",
    )
    commit_min_gap_ms: int = Field(default=3, ge=1, le=10_000, description="Shortest time between commits")
    transaction_timeout_ms: int = Field(
        default=10_000, ge=1_000, le=900_000, description="Broker's bound on a transaction"
    )
    commit_timeout_ms: int = Field(default=8_000, ge=500, le=900_000, description="Our bound on a commit")
    checkpoint_interval_ms: int = Field(
        default=10_000, ge=10, le=3_600_000, description="Time between checkpoint rounds"
    )
    checkpoint_bytes_per_second: int = Field(
        default=20_000_000, ge=10_000, description="Budget of a round's stream records"
    )
    drain_timeout_ms: int = Field(
        default=20_000, ge=500, le=600_000, description="Bound on the drain at SIGTERM and rebalance"
    )
    model_changed: ModelChanged = Field(default=ModelChanged.REFUSE, description="States of another model file")
    idle_ms: int = Field(
        default=30_000, ge=10, le=LONGEST_MS, description="A partition without records for this long is idle (windows)"
    )

    @model_validator(mode="after")
    def _commit_ends_first(self) -> DeliverySection:
        if self.commit_timeout_ms >= self.transaction_timeout_ms:
            raise ValueError("commit_timeout_ms must be below transaction_timeout_ms")
        return self


class BatchSection(Section):
    max_rows: int = Field(default=512, ge=1, le=65_536, description="Rows of one model call")
    max_steps: int = Field(
        default=16, ge=1, le=4_096, description="Steps of one model call for streams that are behind"
    )
    max_window_cells: int = Field(
        default=16_384,
        ge=1,
        le=16_777_216,
        description="Steps, with padding, of one call over closed windows or records of several steps",
    )
    max_poll_records: int = Field(default=16_384, ge=1, le=100_000, description="Records of one poll")
    threads: int = Field(default=1, ge=1, le=64, description="Threads of ONNX Runtime")


class GenerateSection(Section):
    max_steps: int = Field(default=1_000, ge=1, le=100_000, description="Prompt and steps of one rollout")
    max_open: int = Field(default=256, ge=1, le=10_000, description="Rollouts at a time; further requests are refused")
    max_rows: int = Field(default=64, ge=1, le=4_096, description="Rollouts of one model call; the others take turns")
    max_request_bytes: int = Field(default=65_536, ge=64, le=250_000, description="Value and headers of a request")
    max_answer_bytes: int = Field(
        default=500_000, ge=1_024, le=10_485_760, description="A sequence in one record; at most output.max_batch_bytes"
    )


class DecodeSection(Section):
    max_open: int = Field(
        default=2_048, ge=1, le=1_000_000, description="Windows to be written about; beyond it no further input is read"
    )
    max_rows: int = Field(
        default=256, ge=1, le=65_536, description="Sequences of one step, of all windows and beams; the others wait"
    )
    max_memory_bytes: int = Field(
        default=268_435_456,
        ge=1_024,
        description="Encoders' outputs of the windows that are being written about, padded",
    )


class StateSection(Section):
    max_bytes: int = Field(
        default=1_073_741_824, ge=65_536, description="Memory for state; beyond it the oldest streams go"
    )
    idle_ttl_ms: int = Field(
        default=0, ge=0, le=LONGEST_MS, description="Forget streams idle for this long in event time; 0: never"
    )


class ModelSection(Section):
    path: Path = Field(description="ONNX file")
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description="Refuse any other file")
    window: WindowSection | None = Field(default=None, description="Window mode")
    utterance: UtteranceSection | None = Field(default=None, description="Step mode with emit in the contract")


class HttpSection(Section):
    enabled: bool = Field(default=True, description="Serve metrics, health and status")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 in a container")
    port: int = Field(default=8080, ge=0, le=65_535, description="Port; 0: any free one")
    stuck_after_s: int = Field(
        default=30, ge=1, le=3_600, description="/livez fails when the loop stood still for this long"
    )


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is written"
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: JSON unless a terminal reads it"
    )
    summary_interval_s: int = Field(default=60, ge=1, description="Time between summary lines")


class Settings(Section):
    """All settings of ``streamer run``. Sections are frozen; secrets are masked wherever they are printed."""

    kafka: KafkaSection
    input: InputSection
    registry: RegistrySection = RegistrySection()
    output: OutputSection
    dead_letter: DeadLetterSection = DeadLetterSection()
    changelog: ChangelogSection = ChangelogSection()
    topics: TopicsSection = TopicsSection()
    delivery: DeliverySection = DeliverySection()
    batch: BatchSection = BatchSection()
    state: StateSection = StateSection()
    generate: GenerateSection = GenerateSection()
    decode: DecodeSection = DecodeSection()
    model: dict[str, ModelSection] = Field(min_length=1, max_length=2)
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _names_can_be(self) -> Settings:
        for model in self.model:
            check_model_name(model)
        names = {"input.topic": self.input.topic, "output.topic": self.output.topic}
        names |= {"dead_letter.topic": self.dead_letter_topic or "", "changelog.topic": self.changelog_topic or ""}
        seen: dict[str, str] = {}
        for key, name in names.items():
            if not name:
                continue
            check_topic(key, name)
            if name in seen:
                raise ValueError(f"{seen[name]} and {key} are the same topic {name!r}")
            seen[name] = key
        return self

    @property
    def dead_letter_topic(self) -> str | None:
        return (self.dead_letter.topic or f"{self.input.topic}.dlq") if self.dead_letter.enabled else None

    @property
    def changelog_topic(self) -> str | None:
        if not self.delivery.mode.durable:
            return None
        return self.changelog.topic or f"{self.kafka.group}.{self.input.topic}.changelog"

    @property
    def fetch_max_wait_ms(self) -> int:
        """Exactly once longer than a commit and its gap, so that what a fetch brings is committed at once. Else predictions
        wait for the fetch alone."""
        return self.kafka.fetch_max_wait_ms or (24 if self.delivery.mode is Delivery.EXACTLY_ONCE else 11)

    @property
    def commit_interval_ms(self) -> int:
        """Exactly once readers wait for the commit. Else it only bounds what a crash repeats."""
        return self.delivery.commit_interval_ms or (100 if self.delivery.mode is Delivery.EXACTLY_ONCE else 500)

    @property
    def rollouts(self) -> GenerateSection:
        """``generate``, with answers that fit a record batch beside key and headers: others could never be committed."""
        room = self.output.max_batch_bytes - _ANSWER_OVERHEAD_BYTES
        return self.generate.model_copy(update={"max_answer_bytes": min(self.generate.max_answer_bytes, room)})
