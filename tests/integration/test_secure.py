"""Secure connections against a broker that enforces them: TLS, mutual TLS, SASL PLAIN and SCRAM, with ACLs switched on."""

from __future__ import annotations

import asyncio
import base64
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from certificates import Authority
from local_kafka import LocalKafka
from onnx_models import lstm, lstm_fields, save
from processes import flags, running, streamer, until
from serving import event, produce, read_all
from tooling import require_tool

from streamer.tools.broker import require_confluent_kafka

PARTITIONS, FEATURES, STREAMS = 2, 3, 8
# Long and odd enough that a search for them finds nothing else; one needs quoting in JSON, TOML and URLs.
PLAIN_PASSWORD = 'plain"wørd/+7f3a9c51'
SCRAM_PASSWORD = "scram-wørd=,e2d80b46"
PASSPHRASE = "key-phråse&96b1c4de"


@dataclass
class Secured:
    """A broker and what its clients need."""

    kafka: LocalKafka
    ca: Path
    other_ca: Path
    client: Path
    stranger: Path

    def port(self, listener: str) -> str:
        return self.kafka.address(listener).rpartition(":")[2]


def _protocols(names: dict[str, str]) -> str:
    return ",".join(f"{name}:{protocol}" for name, protocol in names.items())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Listeners: SECURE (TLS and SASL), MUTUAL (TLS with client certificates), EXPIRED and ELSEWHERE (a certificate that
    is out of date, or for another host than the broker tells its clients). ACLs deny what is not granted."""
    require_tool("java", "mvn")
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(folder, "authority"), Authority(folder, "other-authority")
    protocols = {"SECURE": "SASL_SSL", "MUTUAL": "SSL", "EXPIRED": "SSL", "ELSEWHERE": "SSL"}
    keys = {
        "SECURE": authority.issue("broker", ["127.0.0.1"]),
        "MUTUAL": authority.issue("broker-mutual", ["127.0.0.1"]),
        "EXPIRED": authority.issue("broker-expired", ["127.0.0.1"], expired=True),
        "ELSEWHERE": authority.issue("broker-elsewhere", ["localhost"]),
    }
    properties = {
        "listener.security.protocol.map": _protocols(
            {"PLAINTEXT": "PLAINTEXT", **protocols, "CONTROLLER": "PLAINTEXT"}
        ),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.file),
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # the plaintext listener: the broker itself, and what tests do beside the service
        "listener.name.secure.plain.sasl.jaas.config": (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'user_serving="{_quoted(PLAIN_PASSWORD)}" user_stranger="{_quoted(PLAIN_PASSWORD)}";'
        ),
        "listener.name.secure.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.secure.ssl.client.auth": "requested",
        "listener.name.mutual.ssl.client.auth": "required",
    }
    for listener, key in keys.items():
        prefix = f"listener.name.{listener.lower()}.ssl.keystore"
        properties |= {f"{prefix}.type": "PEM", f"{prefix}.location": str(key)}
    client = authority.issue("serving", passphrase=PASSPHRASE)
    stranger = other.issue("stranger", passphrase=PASSPHRASE)
    with LocalKafka(listeners=tuple(protocols), properties=properties) as kafka:
        _grant(kafka.bootstrap)
        yield Secured(kafka, authority.file, other.file, client, stranger)


def _quoted(text: str) -> str:
    """For a value in JAAS."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _grant(bootstrap: str) -> None:
    """The SCRAM user, and the rights that the service needs: nothing more."""
    require_confluent_kafka()
    from confluent_kafka import admin

    client = admin.AdminClient({"bootstrap.servers": bootstrap})
    scram = admin.ScramCredentialInfo(admin.ScramMechanism.SCRAM_SHA_512, 4096)
    user = admin.UserScramCredentialUpsertion("serving", scram, SCRAM_PASSWORD.encode())
    rights = [
        *((admin.ResourceType.TOPIC, right) for right in ("READ", "WRITE", "CREATE", "DESCRIBE_CONFIGS")),
        (admin.ResourceType.GROUP, "READ"),
        (admin.ResourceType.TRANSACTIONAL_ID, "WRITE"),
    ]
    bindings = [
        admin.AclBinding(
            kind,
            "secure.",
            admin.ResourcePatternType.PREFIXED,
            "User:serving",
            "*",
            admin.AclOperation[right],
            admin.AclPermissionType.ALLOW,
        )
        for kind, right in rights
    ]
    for future in [
        *client.alter_user_scram_credentials([user]).values(),
        *client.create_acls(bindings).values(),
    ]:
        future.result(30)


@dataclass
class Way:
    """Settings, environment and files of one way to connect."""

    settings: dict[str, object]
    environment: dict[str, str]


def way(secured: Secured, name: str, folder: Path) -> Way:
    """``plain`` takes its password from the environment, the others from files."""
    tls = {"kafka.ssl_cafile": secured.ca}
    sasl = {"kafka.security_protocol": "SASL_SSL", "kafka.sasl_username": "serving", **tls}
    if name == "plain":
        return Way(
            {"kafka.bootstrap": secured.kafka.address("SECURE"), "kafka.sasl_mechanism": "PLAIN", **sasl},
            {"STREAMER_KAFKA__SASL_PASSWORD": PLAIN_PASSWORD},
        )
    if name == "scram":
        (folder / "password").write_text(SCRAM_PASSWORD + "\n")
        return Way(
            {
                "kafka.bootstrap": secured.kafka.address("SECURE"),
                "kafka.sasl_mechanism": "SCRAM-SHA-512",
                "kafka.sasl_password_file": folder / "password",
                **sasl,
            },
            {},
        )
    assert name == "mutual"
    (folder / "passphrase").write_text(PASSPHRASE)
    return Way(
        {
            "kafka.bootstrap": secured.kafka.address("MUTUAL"),
            "kafka.security_protocol": "SSL",
            "kafka.ssl_certfile": secured.client,
            "kafka.ssl_key_password_file": folder / "passphrase",
            **tls,
        },
        {},
    )


def base(folder: Path, topic: str) -> dict[str, object]:
    if not (folder / "model.onnx").exists():
        save(lstm(FEATURES), folder / "model.onnx", lstm_fields(FEATURES))
    return {
        "kafka.group": topic,
        "kafka.session_timeout_ms": 6000,
        "kafka.connect_timeout_ms": 5000,
        "input.topic": topic,
        "output.topic": f"{topic}.out",
        "delivery.checkpoint_interval_ms": 200,
        "model.lstm.path": folder / "model.onnx",
        "http.port": 0,
    }


def rows(first: int, count: int):
    for index in range(first, first + count):
        x = np.random.default_rng(index).normal(size=FEATURES).astype(np.float32).tolist()
        yield index % STREAMS % PARTITIONS, b"s%d" % (index % STREAMS), event(x), []


@pytest.mark.parametrize("name", ["plain", "scram", "mutual"])
async def test_each_way_in_serves_exactly_once_over_a_crash(secured, name, create_topics, tmp_path) -> None:
    plaintext, topic = secured.kafka.bootstrap, f"secure.{uuid.uuid4().hex[:8]}"
    await create_topics(plaintext, {topic: PARTITIONS})
    chosen = way(secured, name, tmp_path)
    arguments = flags({**base(tmp_path, topic), **chosen.settings})
    await produce(plaintext, topic, rows(0, 400))
    with running(tmp_path, *arguments, extra=chosen.environment) as service:
        await read_all(plaintext, f"{topic}.out", at_least=100)
        service.stop(signal.SIGKILL)
    with running(tmp_path, *arguments, extra=chosen.environment) as service:
        await produce(plaintext, topic, rows(400, 100))
        found = await read_all(plaintext, f"{topic}.out", at_least=500)
        assert service.stop() == 0, service.log()
    assert Counter(Counter(read.source for read in found).values()) == {1: 500}


MISTAKES = {
    "wrong password, PLAIN": (
        "plain",
        {},
        {"STREAMER_KAFKA__SASL_PASSWORD": "not the word"},
        "authentication failed",
    ),
    "wrong password, SCRAM": ("scram", {"kafka.sasl_username": "nobody"}, {}, "authentication failed"),
    "mechanism that is not offered": ("plain", {"kafka.sasl_mechanism": "SCRAM-SHA-256"}, {}, "does not offer"),
    "untrusted certificate": ("plain", {"kafka.ssl_cafile": "{other_ca}"}, {}, "is not trusted"),
    "wrong host name in bootstrap": ("plain", {"kafka.bootstrap": "localhost:{SECURE}"}, {}, "another host name"),
    "wrong host name of the broker": ("mutual", {"kafka.bootstrap": "localhost:{ELSEWHERE}"}, {}, "another host name"),
    "expired certificate": ("mutual", {"kafka.bootstrap": "127.0.0.1:{EXPIRED}"}, {}, "not valid any more"),
    "client certificate of a stranger": ("mutual", {"kafka.ssl_certfile": "{stranger}"}, {}, "kafka.ssl_certfile"),
    "no TLS on the port": ("mutual", {"kafka.bootstrap": "127.0.0.1:{PLAINTEXT}"}, {}, "kafka.security_protocol"),
    "no rights": ("plain", {"kafka.sasl_username": "stranger"}, {}, "grant READ"),
    "no rights to the group": ("plain", {"kafka.group": "other"}, {}, "permission denied"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_each_mistake_is_one_sentence_and_exit_code_4(secured, mistake, create_topics, tmp_path) -> None:
    name, changes, variables, says = MISTAKES[mistake]
    topic = f"secure.{uuid.uuid4().hex[:8]}"
    await create_topics(secured.kafka.bootstrap, {topic: PARTITIONS})
    chosen = way(secured, name, tmp_path)
    known = {listener: secured.port(listener) for listener in ("SECURE", "EXPIRED", "ELSEWHERE", "PLAINTEXT")}
    known |= {"other_ca": secured.other_ca, "stranger": secured.stranger}
    changed = {key: value.format(**known) for key, value in changes.items()}
    settings = {**base(tmp_path, topic), "changelog.topic": f"{topic}.changelog", **chosen.settings, **changed}
    done = await asyncio.to_thread(streamer, "run", *flags(settings), extra={**chosen.environment, **variables})
    assert done.returncode == 4, done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert says in sentence
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def shown(secret: str, text: str) -> list[str]:
    """The forms of a secret that a text holds."""
    raw = secret.encode()
    forms = {"plain": secret, "repr": repr(secret)[1:-1], "bytes": repr(raw)[2:-1], "hex": raw.hex()}
    forms["json"] = secret.encode("unicode_escape").decode()
    forms |= {f"base64, {skip}": base64.b64encode(raw[skip:-3])[:-4].decode() for skip in range(3)}
    return [form for form, value in forms.items() if value in text]


def test_the_search_finds_what_it_looks_for() -> None:
    """What an authentication with PLAIN sends, and common ways to print it."""
    token = b"\0serving\0" + SCRAM_PASSWORD.encode()
    for text in (repr(token), token.hex(), base64.b64encode(token).decode(), f"password={SCRAM_PASSWORD}"):
        assert shown(SCRAM_PASSWORD, text), text


async def test_secrets_are_in_nothing_that_is_emitted(secured, create_topics, tmp_path) -> None:
    plaintext, topic = secured.kafka.bootstrap, f"secure.{uuid.uuid4().hex[:8]}"
    await create_topics(plaintext, {topic: PARTITIONS})
    both = {**way(secured, "mutual", tmp_path).settings, **way(secured, "scram", tmp_path).settings}
    del both["kafka.sasl_password_file"]
    by_environment = {"STREAMER_KAFKA__SASL_PASSWORD": SCRAM_PASSWORD}
    arguments = flags({**base(tmp_path, topic), **both, "log.level": "debug", "log.summary_interval_s": 1})
    await produce(plaintext, topic, rows(0, 100))
    emitted: dict[str, str] = {}
    with running(tmp_path, *arguments, extra={**by_environment, "PYTHONASYNCIODEBUG": "1"}) as service:
        await read_all(plaintext, f"{topic}.out", at_least=100)
        await asyncio.to_thread(until, lambda: service.lines("summary"), "a summary")
        pages = ("/", "/status", "/metrics", "/livez", "/readyz", "/streams/s1")
        emitted |= {page: service.get(page) for page in pages}
        emitted["arguments"] = service.arguments()
        assert service.stop() == 0
        emitted["log"] = service.log()

    def keep(name: str, code: int, *command: str, extra: dict[str, str]) -> None:
        done = streamer(*command, extra=extra)
        emitted[name] = done.stdout + done.stderr
        assert done.returncode == code, emitted[name]

    keep("check", 0, "check", *arguments, extra=by_environment)
    keep("stream", 2, "stream", "show", "nobody", *arguments, extra=by_environment)
    assert "kafka.sasl_password = **********" in emitted["check"]
    assert "--set" in emitted["arguments"]
    misplaced = tmp_path / "misplaced.toml"
    misplaced.write_text(f"[kafka]\npasword = {SCRAM_PASSWORD!r}\nsasl_password = [{SCRAM_PASSWORD!r}]\n")
    broken = tmp_path / "broken.toml"
    broken.write_text(f"[kafka]\nsasl_password = {SCRAM_PASSWORD}\n")
    keep("wrong user", 4, "run", *arguments, "--set", "kafka.sasl_username=nobody", extra=by_environment)
    (tmp_path / "passphrase").write_text(SCRAM_PASSWORD)  # a secret, but not the one that opens the key
    keep("wrong passphrase", 2, "run", *arguments, extra=by_environment)
    keep("one underscore", 2, "run", *arguments, extra={"STREAMER_KAFKA_SASL_PASSWORD": SCRAM_PASSWORD})
    keep("unknown key", 2, "check", "-c", str(misplaced), extra={})
    keep("no TOML", 2, "check", "-c", str(broken), extra={})
    keep("flag", 2, "check", "--set", f"kafka.sasl_password={SCRAM_PASSWORD}", extra={})
    keep("property", 2, "produce", "--topic", "t", "--property", f"sasl.password={SCRAM_PASSWORD}", extra={})
    leaks = {
        f"{name}: {form}"
        for name, text in emitted.items()
        for secret in (SCRAM_PASSWORD, PASSPHRASE)
        for form in shown(secret, text)
    }
    assert leaks == set()


async def test_check_tells_the_right_to_transactional_ids_that_is_missing(secured, create_topics, tmp_path) -> None:
    """READ on the group is given and no right to transactional ids that begin with its name."""
    require_confluent_kafka()
    from confluent_kafka import admin

    topic = f"secure.{uuid.uuid4().hex[:8]}"
    await create_topics(secured.kafka.bootstrap, {topic: PARTITIONS})
    group = f"lent-{uuid.uuid4().hex[:8]}"
    binding = admin.AclBinding(
        admin.ResourceType.GROUP,
        group,
        admin.ResourcePatternType.LITERAL,
        "User:serving",
        "*",
        admin.AclOperation.READ,
        admin.AclPermissionType.ALLOW,
    )
    client = admin.AdminClient({"bootstrap.servers": secured.kafka.bootstrap})
    for future in client.create_acls([binding]).values():
        future.result(30)
    chosen = way(secured, "plain", tmp_path)
    settings = {
        **base(tmp_path, topic),
        **chosen.settings,
        "kafka.group": group,
        "changelog.topic": f"{topic}.changelog",
    }
    done = await asyncio.to_thread(streamer, "check", *flags(settings), extra=chosen.environment)
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"no right to transactional ids that begin with '{group}'" in done.stdout + done.stderr
