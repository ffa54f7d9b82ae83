"""Settings: one TOML file, every key also as ``STREAMER_SECTION__KEY`` and ``--set section.key=value``.

Precedence: flag > environment > file > default. Unknown keys are errors, and all problems are reported at once. Secrets
come from the file, the environment or a file of their own, never from a flag: process arguments are public.
"""

from __future__ import annotations

import datetime
import ssl
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from streamer.errors import ConfigurationError

ENV_PREFIX = "STREAMER_"
_TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
_PATHS = (*_TLS_FILES, "ssl_key_password_file", "sasl_password_file")
_SECRETS = frozenset({"kafka.sasl_password", "kafka.ssl_key_password"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class KafkaSection(_Section):
    bootstrap: str = Field(min_length=1, description="Brokers to start from, HOST:PORT, comma separated")
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
        description="Longest wait of a fetch for fetch_min_bytes; default 16 exactly-once, else 11",
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
            given = [name for name in _TLS_FILES if getattr(self, name) is not None]
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


class InputSection(_Section):
    topic: str = Field(min_length=1, description="Topic with one record per event, keyed by stream")
    format: str = Field(default="json", description="json, json-named, float32, or a decoder MODULE:FUNCTION")
    start: str = Field(
        default="earliest", description="First start: earliest, latest, or a time (ISO 8601, ms since 1970)"
    )
    max_record_bytes: int = Field(
        default=1_048_576, ge=1, le=104_857_600, description="Larger values are dead-lettered"
    )
    missing: float | Literal["reject"] = Field(default="reject", description="Null features: reject, or this number")
    max_future_ms: int | None = Field(
        default=3_600_000,
        ge=0,
        description="Reject event times further ahead of the record: one would close every window",
    )
    late: Literal["drop", "dead-letter"] = Field(
        default="drop", description="Events behind the watermark (window mode)"
    )

    @model_validator(mode="after")
    def _start_is_known(self) -> InputSection:
        self.start_position()
        return self

    def start_position(self) -> str:
        """earliest, latest, or milliseconds since 1970 as text. Raises ValueError."""
        if self.start in ("earliest", "latest") or self.start.isdigit():
            return self.start
        try:
            moment = datetime.datetime.fromisoformat(self.start)
        except ValueError as error:
            raise ValueError(f"start = {self.start!r} is neither earliest, latest nor a time") from error
        if moment.tzinfo is None:
            raise ValueError(f"start = {self.start!r} needs a time zone, for example {self.start}Z")
        return str(int(moment.timestamp() * 1000))


class OutputSection(_Section):
    topic: str = Field(min_length=1, description="Topic of the predictions")
    format: Literal["json"] = Field(default="json", description="Value format of predictions")
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="none", description="Compression of everything that is written"
    )
    max_batch_bytes: int = Field(default=524_288, ge=16_384, le=10_485_760, description="Bound on one record batch")


class DeadLetterSection(_Section):
    enabled: bool = Field(default=True, description="Keep rejects; false: they are only counted")
    topic: str = Field(default="", description="Topic of the rejects; default <input>.dlq")


class ChangelogSection(_Section):
    topic: str = Field(default="", description="Compacted topic of states; default <group>.<input>.changelog")
    replication_factor: int = Field(default=-1, ge=-1, le=32_767, description="When created; -1: as the input's")
    segment_ms: int = Field(default=600_000, ge=100, description="When created: segment.ms")
    segment_bytes: int = Field(default=67_108_864, ge=1_048_576, description="When created: segment.bytes")
    min_cleanable_dirty_ratio: float = Field(
        default=0.1, ge=0, le=1, description="When created: min.cleanable.dirty.ratio"
    )
    max_compaction_lag_ms: int = Field(default=3_600_000, ge=1, description="When created: max.compaction.lag.ms")
    delete_retention_ms: int = Field(default=86_400_000, ge=0, description="When created: delete.retention.ms")


class TopicsSection(_Section):
    create: bool = Field(default=True, description="Create missing output, dead-letter and changelog topics")
    replication_factor: int = Field(default=-1, ge=-1, le=32_767, description="When created; -1: as the input's")


class DeliverySection(_Section):
    mode: Literal["exactly-once", "at-least-once", "ephemeral"] = Field(default="exactly-once", description="Delivery")
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
    model_changed: Literal["refuse", "keep", "reset"] = Field(
        default="refuse", description="States of another model file"
    )
    idle_ms: int = Field(
        default=30_000, ge=10, description="A partition without records for this long is idle (windows)"
    )

    @model_validator(mode="after")
    def _commit_ends_first(self) -> DeliverySection:
        if self.commit_timeout_ms >= self.transaction_timeout_ms:
            raise ValueError("commit_timeout_ms must be below transaction_timeout_ms")
        return self


class BatchSection(_Section):
    max_rows: int = Field(default=512, ge=1, le=65_536, description="Rows of one model call")
    max_steps: int = Field(
        default=16, ge=1, le=4_096, description="Steps of one model call for streams that are behind"
    )
    max_poll_records: int = Field(default=16_384, ge=1, le=100_000, description="Records of one poll")
    threads: int = Field(default=1, ge=1, le=64, description="Threads of ONNX Runtime")


class GenerateSection(_Section):
    max_steps: int = Field(default=1_000, ge=1, le=100_000, description="Prompt and steps of one rollout")
    max_open: int = Field(default=256, ge=1, le=10_000, description="Rollouts at a time; further requests are refused")
    max_rows: int = Field(default=64, ge=1, le=4_096, description="Rollouts of one model call; the others take turns")
    max_request_bytes: int = Field(default=65_536, ge=64, le=250_000, description="Value and headers of a request")
    max_answer_bytes: int = Field(
        default=500_000, ge=1_024, le=10_485_760, description="A sequence in one record; at most output.max_batch_bytes"
    )


class StateSection(_Section):
    max_bytes: int = Field(
        default=1_073_741_824, ge=65_536, description="Memory for state; beyond it the oldest streams go"
    )
    idle_ttl_ms: int = Field(default=0, ge=0, description="Forget streams idle for this long in event time; 0: never")


class WindowSection(_Section):
    kind: Literal["tumbling", "hopping", "session", "count", "end"] = Field(description="Kind of window")
    size_ms: int = Field(default=0, ge=0, description="tumbling, hopping: length")
    hop_ms: int = Field(default=0, ge=0, description="hopping: distance of starts")
    gap_ms: int = Field(default=0, ge=0, description="session: gap that ends it")
    count: int = Field(default=0, ge=0, description="count: events")
    max_events: int = Field(default=4_096, ge=1, le=1_000_000, description="Closes with reason full")
    max_span_ms: int = Field(default=86_400_000, ge=1, description="Closes with reason span")
    min_events: int = Field(default=1, ge=1, description="Shorter windows close without a prediction")
    disorder_ms: int = Field(default=0, ge=0, description="How far events may be behind the newest")
    max_open_windows: int = Field(
        default=1_000_000, ge=1, description="Per partition; the oldest closes with reason limit"
    )


class ModelSection(_Section):
    path: Path = Field(description="ONNX file")
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$", description="Refuse any other file")
    window: WindowSection | None = Field(default=None, description="Window mode")


class HttpSection(_Section):
    enabled: bool = Field(default=True, description="Serve metrics, health and status")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 in a container")
    port: int = Field(default=8080, ge=0, le=65_535, description="Port; 0: any free one")
    stuck_after_s: int = Field(
        default=30, ge=1, le=3_600, description="/livez fails when the loop stood still for this long"
    )


class LogSection(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is written"
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: JSON unless a terminal reads it"
    )
    summary_interval_s: int = Field(default=60, ge=1, description="Time between summary lines")


class Settings(BaseSettings):
    """All settings of ``streamer run``. Sections are frozen; secrets are masked wherever they are printed."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    kafka: KafkaSection
    input: InputSection
    output: OutputSection
    dead_letter: DeadLetterSection = DeadLetterSection()
    changelog: ChangelogSection = ChangelogSection()
    topics: TopicsSection = TopicsSection()
    delivery: DeliverySection = DeliverySection()
    batch: BatchSection = BatchSection()
    state: StateSection = StateSection()
    generate: GenerateSection = GenerateSection()
    model: dict[str, ModelSection] = Field(min_length=1, max_length=2)
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # sources are merged below, so that origins and all problems can be told

    @model_validator(mode="after")
    def _topics_differ(self) -> Settings:
        names = {"input.topic": self.input.topic, "output.topic": self.output.topic}
        names |= {"dead_letter.topic": self.dead_letter_topic or "", "changelog.topic": self.changelog_topic or ""}
        seen: dict[str, str] = {}
        for key, name in names.items():
            if name and name in seen:
                raise ValueError(f"{seen[name]} and {key} are the same topic {name!r}")
            seen[name] = key
        return self

    @property
    def dead_letter_topic(self) -> str | None:
        return (self.dead_letter.topic or f"{self.input.topic}.dlq") if self.dead_letter.enabled else None

    @property
    def changelog_topic(self) -> str | None:
        if self.delivery.mode == "ephemeral":
            return None
        return self.changelog.topic or f"{self.kafka.group}.{self.input.topic}.changelog"

    @property
    def fetch_max_wait_ms(self) -> int:
        """Exactly once longer than a commit and its gap, so that what a fetch brings is committed at once. Else predictions
        wait for the fetch alone."""
        return self.kafka.fetch_max_wait_ms or (16 if self.delivery.mode == "exactly-once" else 11)

    @property
    def commit_interval_ms(self) -> int:
        """Exactly once readers wait for the commit. Else it only bounds what a crash repeats."""
        return self.delivery.commit_interval_ms or (100 if self.delivery.mode == "exactly-once" else 500)


def load_settings(
    path: Path | None, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, str]]:
    """Settings and the origin of every key that is not a default. Raises ConfigurationError with all problems.

    Paths in the file are relative to the file, all others to the working directory."""
    document = {} if path is None else _read(path)
    origins: dict[str, str] = {} if path is None else dict.fromkeys(_flat(document), f"file {path}")
    problems: list[str] = []
    for name, value in sorted((env or {}).items()):
        key = _env_key(name, value, problems)
        if key is not None and _put(document, key, value, f"environment {name}", problems):
            origins[key] = f"environment {name}"
    for number, text in enumerate(overrides, 1):
        key, separator, value = (part.strip() for part in text.partition("="))
        if not separator or "." not in key:
            problems.append(f"--set number {number}: write --set section.key=value")
        elif key in _SECRETS:
            problems.append(f"{key}: not as a flag, which all users can read: use {key}_file or {_env_name(key)}")
        elif _put(document, key, value, "flag --set", problems):
            origins[key] = "flag --set"
    for section in ("kafka", "input", "output"):
        document.setdefault(section, {})  # so that the missing keys are named, not the section
    settings = None
    try:
        settings = Settings(**document)
    except ValidationError as error:
        problems += [_explain(each, origins) for each in error.errors(include_url=False)]
    if problems or settings is None:
        raise ConfigurationError("settings:\n  " + "\n  ".join(problems))
    return settings, origins


def describe(settings: Settings, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting, secrets masked."""
    rows = []
    for key, value in _flat(settings.model_dump(mode="python")).items():
        rows.append((key, "" if value is None else str(value), origins.get(key, "default")))
    return rows


def settings_reference() -> str:
    """Markdown with one table per section: key, type and bounds, default, meaning."""
    parts = []
    for name, section in _sections():
        rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for key, info in section.model_fields.items():
            if info.annotation == WindowSection | None:
                continue
            default = "required" if info.is_required() else f"`{_shown(info.default)}`"
            rows.append(f"| `{key}` | {_type_text(info)} | {default} | {info.description} |")
        parts.append(f"### `[{name}]`\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _sections() -> list[tuple[str, type[_Section]]]:
    found: list[tuple[str, type[_Section]]] = []
    for name, info in Settings.model_fields.items():
        if name == "model":
            found += [("model.NAME", ModelSection), ("model.NAME.window", WindowSection)]
        else:
            assert isinstance(info.annotation, type)
            found.append((name, info.annotation))
    return found


def _shown(value: object) -> str:
    return "unset" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def _type_text(info: FieldInfo) -> str:
    kinds = get_args(info.annotation) or (info.annotation,)
    if get_origin(info.annotation) is Literal:
        text = ", ".join(f"`{kind}`" for kind in kinds)
    else:
        names = {int: "integer", bool: "true or false", float: "number", Path: "path", SecretStr: "secret", str: "text"}
        text = " or ".join(names.get(kind) or f"`{get_args(kind)[0]}`" for kind in kinds if kind is not type(None))
    low = [bound.ge for bound in info.metadata if isinstance(bound, Ge)]
    high = [bound.le for bound in info.metadata if isinstance(bound, Le)]
    if low and high:
        return f"{text}, {low[0]} to {high[0]}"
    return f"{text}, at least {low[0]}" if low else text


def security(section: KafkaSection) -> dict[str, Any]:
    """Keyword arguments that secure a client. Raises ConfigurationError for files that cannot be used."""
    protocol = section.security_protocol
    options: dict[str, Any] = {"security_protocol": protocol}
    if "SSL" in protocol:
        options["ssl_context"] = _context(section)
    if protocol.startswith("SASL"):
        password = _secret(section.sasl_password, section.sasl_password_file, "kafka.sasl_password")
        if not section.sasl_username or password is None:
            raise ConfigurationError(f"{protocol} needs kafka.sasl_username and kafka.sasl_password (or _file)")
        options["sasl_mechanism"] = section.sasl_mechanism
        options["sasl_plain_username"] = section.sasl_username
        options["sasl_plain_password"] = password
    return options


def _context(section: KafkaSection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=section.ssl_cafile)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"kafka.ssl_cafile = {section.ssl_cafile}: cannot be used: {_reason(error)}"
        ) from error
    if section.ssl_certfile is not None:
        password = _secret(section.ssl_key_password, section.ssl_key_password_file, "kafka.ssl_key_password")
        try:
            # an empty password instead of none: OpenSSL would ask for it at the terminal
            context.load_cert_chain(section.ssl_certfile, section.ssl_keyfile, password or "")
        except (OSError, ValueError) as error:
            hint = "" if isinstance(error, FileNotFoundError) else ", or kafka.ssl_key_password does not open the key"
            files = f"kafka.ssl_certfile = {section.ssl_certfile}"
            files += f", kafka.ssl_keyfile = {section.ssl_keyfile}" if section.ssl_keyfile else ""
            raise ConfigurationError(f"{files}: cannot be used: {_reason(error)}{hint}") from error
    return context


def _reason(error: OSError | ValueError) -> str:
    """What OpenSSL or the system says, without the place in its source."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a PEM file with what is needed").replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _secret(value: SecretStr | None, file: Path | None, name: str) -> str | None:
    if file is None:
        return None if value is None else value.get_secret_value()
    try:
        secret = file.read_text().rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{name}_file = {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}_file = {file}: not UTF-8 text") from None
    if not secret:
        raise ConfigurationError(f"{name}_file = {file}: is empty")
    return secret


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}: name a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    kafka, models = document.get("kafka"), document.get("model")
    sections = [(kafka, _PATHS)] + [(each, ("path",)) for each in (models.values() if isinstance(models, dict) else ())]
    for section, names in sections:
        for name in names:
            if isinstance(section, dict) and isinstance(section.get(name), str):
                section[name] = str(path.parent / section[name])
    return document


def _env_name(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", "__")


def _env_key(name: str, value: str, problems: list[str]) -> str | None:
    """Key of a variable, or None when it is none of ours (Kubernetes adds STREAMER_SERVICE_HOST and the like)."""
    if not name.startswith(ENV_PREFIX):
        return None
    rest = name[len(ENV_PREFIX) :].lower()
    if "__" in rest:
        return rest.replace("__", ".")
    section, _, key = rest.partition("_")
    for known, model in _sections():
        if known == section and key in model.model_fields and "://" not in value:
            problems.append(f"environment {name}: write {_env_name(f'{section}.{key}')}, with two underscores")
    return None


def _put(document: dict[str, Any], key: str, value: str, origin: str, problems: list[str]) -> bool:
    *parents, last = key.split(".")
    for parent in parents:
        child = document.setdefault(parent, {})
        if not isinstance(child, dict):
            problems.append(f"{key} ({origin}): {parent} is a value, not a section")
            return False
        document = child
    document[last] = value
    return True


def _explain(error: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Key, message, value given and where it came from. The value of a secret or of an unknown key is never shown."""
    parts = [str(part) for part in error["loc"]]
    while parts and parts[-1] in ("float", "literal['reject']"):  # branches of a union, not keys
        parts.pop()
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        message = "unknown key: remove it or correct its name"
    elif key == "model":
        message = "one or two tables [model.NAME] with a path are needed"
    elif error["type"] == "missing":
        message = f"required: set it in the file, as {_env_name(key)} or with --set {key}=..."
    else:
        message = str(error["msg"]).removeprefix("Value error, ")
        given = error.get("input")
        if key not in _SECRETS and isinstance(given, str | int | float) and error["type"] != "value_error":
            message += f", got {str(given)[:80]!r}"
    origin = origins.get(key)
    return f"{key or 'settings'}: {message}" + (f" ({origin})" if origin else "")
