"""Files of secure connections that cannot be used: a sentence that names the setting, never the secret."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority

from streamer.errors import ConfigurationError
from streamer.kafka.security import security
from streamer.settings import KafkaSection

PASSPHRASE = "open-sesame-5f1c"


def section(**changes: Any) -> KafkaSection:
    return KafkaSection(**{"bootstrap": "b:9093", "group": "g", "security_protocol": "SSL", **changes})


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    authority = Authority(tmp_path, "ca")
    authority.issue("client", passphrase=PASSPHRASE)
    Authority(tmp_path, "other-ca").issue("other")
    (tmp_path / "garbage.pem").write_text("no certificate\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "word").write_text(PASSPHRASE + "\n")
    (tmp_path / "wrong-word").write_text("guess-77aa\n")
    return lambda name: tmp_path / name


def test_a_client_certificate_with_a_protected_key_is_loaded(files: Callable[[str], Path]) -> None:
    found = security(
        section(ssl_cafile=files("ca.pem"), ssl_certfile=files("client.pem"), ssl_key_password_file=files("word"))
    )
    context = found["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert [each["subject"] for each in context.get_ca_certs()] == [((("commonName", "ca"),),)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ssl_cafile": "absent.pem"}, "kafka.ssl_cafile = .*absent.pem: cannot be used: No such file"),
        ({"ssl_cafile": "garbage.pem"}, "kafka.ssl_cafile = .*garbage.pem: cannot be used: no certificate"),
        ({"ssl_certfile": "absent.pem"}, "kafka.ssl_certfile = .*absent.pem: cannot be used: No such file"),
        ({"ssl_certfile": "client.pem"}, "kafka.ssl_key_password does not open the key"),
        ({"ssl_certfile": "client.pem", "ssl_key_password_file": "wrong-word"}, "does not open the key"),
        ({"ssl_certfile": "client.pem", "ssl_key_password_file": "empty"}, "ssl_key_password_file = .*: is empty"),
        ({"ssl_certfile": "client.pem", "ssl_key_password_file": "absent"}, "ssl_key_password_file = .*: No such file"),
        ({"ssl_certfile": "ca.pem", "ssl_keyfile": "other.pem"}, "key values mismatch"),
    ],
)
def test_each_unusable_file_is_named(files: Callable[[str], Path], given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        security(section(**{name: files(file) for name, file in given.items()}))
    assert "guess-77aa" not in str(raised.value)
    assert "\n" not in str(raised.value)
