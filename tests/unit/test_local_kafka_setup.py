"""The parts of the local Kafka that need neither Java nor Maven."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import local_kafka
import pytest

FAKE_MAVEN = """#!/bin/sh
echo run >> "$FAKE_LOG"
for word; do case $word in -DoutputDirectory=*) out=${word#*=};; esac; done
if [ -n "$FAKE_FAILURE" ]; then echo half > "$out/some.jar"; echo "$FAKE_FAILURE"; exit 1; fi
echo jar > "$out/kafka_2.13-0.jar"
"""


@pytest.fixture
def maven(tmp_path, monkeypatch):
    """A stand-in for mvn and java on the PATH, and a cache of its own; returns the log of mvn's runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("mvn", FAKE_MAVEN), ("java", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


def test_jars_are_fetched_once_and_the_directory_appears_complete(maven, tmp_path):
    first = local_kafka.jars()
    assert local_kafka.jars() == first
    assert maven.read_text().split() == ["run"]
    assert [path.name for path in first.iterdir()] == ["kafka_2.13-0.jar"]
    assert stat.S_IMODE(first.stat().st_mode) == 0o755
    assert [path for path in first.parent.iterdir() if path.is_dir()] == [first]


def test_a_failed_download_leaves_nothing_that_looks_complete(maven, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAILURE", "could not resolve the artifact")
    with pytest.raises(local_kafka.LocalKafkaError, match="could not resolve the artifact"):
        local_kafka.jars()
    assert [path for path in (tmp_path / "cache" / "streamer").iterdir() if path.is_dir()] == []


def test_missing_programs_are_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(local_kafka.LocalKafkaError, match=r"java and mvn not found.*apt-get install.*KAFKA_BOOTSTRAP"):
        local_kafka.LocalKafka().start()


def test_script_says_in_one_line_what_is_missing(tmp_path):
    script = Path(local_kafka.__file__)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 4
    assert done.stderr.startswith("local Kafka: java and mvn not found")
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_refused_before_a_broker_starts(maven):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(local_kafka.LocalKafkaError, match="is taken"):
            local_kafka.LocalKafka(port=taken.getsockname()[1]).start()


def test_free_ports_are_distinct_and_not_those_of_outgoing_connections():
    ports = [port for port, _ in zip(local_kafka._free_ports(), range(50), strict=False)]
    assert len(set(ports)) == 50
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(port < int(limits[0]) for port in ports) or int(limits[0]) <= 11_000


def test_nobody_answers_on_a_closed_port():
    assert local_kafka.brokers_seen_by(next(local_kafka._free_ports())) == set()


def test_ids_are_22_characters_and_never_look_like_an_option():
    ids = {local_kafka._random_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(text) == 22 and not text.startswith("-") for text in ids)
