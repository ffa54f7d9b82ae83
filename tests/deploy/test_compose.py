"""compose.yaml: valid by the schema of the specification, and in agreement with the files and programs it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from dockerfile import instructions
from gomodules import COMPOSE, module
from local_kafka import POM, LocalKafka
from observing import ROOT
from typer.testing import CliRunner

from streamer import __version__
from streamer.cli import app
from streamer.settings import load_settings

DEPLOY = ROOT / "deploy"
DOCUMENT = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
# What is true of one machine only, or of the image's layout.
PLACES = {
    "process.roles", "node.id", "controller.quorum.voters", "controller.listener.names", "listeners",
    "advertised.listeners", "listener.security.protocol.map", "inter.broker.listener.name", "log.dirs",
}  # fmt: skip


def test_it_fits_the_specification() -> None:
    schema = json.loads((module(*COMPOSE) / "schema" / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(DOCUMENT)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**DOCUMENT, "services": {"a": {"imagee": "b"}}})


def test_what_it_mounts_exists_and_volumes_are_declared() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in DOCUMENT["volumes"], f"{name}: {source}"
    build = SERVICES["streamer"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_services_wait_for_services_that_exist_and_can_be_waited_for() -> None:
    healthy = {name for name, service in SERVICES.items() if "test" in service.get("healthcheck", {})}
    healthy.add("streamer")  # the image brings its check
    assert any(word == "HEALTHCHECK" for word, _ in instructions(DEPLOY / "Dockerfile"))
    for name, service in SERVICES.items():
        needs = service.get("depends_on", {})
        assert set(needs) <= set(SERVICES)
        for other, need in needs.items() if isinstance(needs, dict) else ():
            assert need["condition"] != "service_healthy" or other in healthy, f"{name} waits for {other}"
            assert need["condition"] != "service_completed_successfully" or "restart" not in SERVICES[other]


def test_ports_are_open_to_this_machine_only_and_distinct() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.rsplit(":", 1)[0] for port in published}) == len(published)


def test_kafka_is_set_as_the_one_that_tests_run(tmp_path: Path) -> None:
    local = LocalKafka()
    local.data = tmp_path
    local._choose_ports()
    local._configure(1)
    lines = (tmp_path / "node-1" / "server.properties").read_text().splitlines()
    tested = dict(line.split("=", 1) for line in lines)
    environment = SERVICES["kafka"]["environment"]
    composed = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith("KAFKA_")
    }
    assert set(composed) == set(tested)
    assert {key: value for key, value in composed.items() if key not in PLACES} == {
        key: value for key, value in tested.items() if key not in PLACES
    }
    version = re.search(r"kafka_2\.13</artifactId>\s*<version>([^<]+)", POM.read_text())
    assert version
    assert {SERVICES[name]["image"] for name in ("kafka", "topics")} == {f"apache/kafka:{version[1]}"}


def test_listeners_of_kafka_agree() -> None:
    environment = SERVICES["kafka"]["environment"]
    listeners = dict(each.split("://:") for each in environment["KAFKA_LISTENERS"].split(","))
    advertised = dict(each.split("://") for each in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    protocols = dict(each.split(":") for each in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert set(protocols) == set(listeners) == {*advertised, "CONTROLLER"}
    for name, address in advertised.items():
        assert address.rsplit(":", 1)[1] == listeners[name]
    assert f"127.0.0.1:{listeners['HOST']}:{listeners['HOST']}" in SERVICES["kafka"]["ports"]


def test_the_service_accepts_its_settings_and_everyone_means_the_same_names() -> None:
    service = SERVICES["streamer"]
    settings, _ = load_settings(DEPLOY / "compose" / "settings.toml", (), {})
    mounted = {volume.split(":")[1] for volume in service["volumes"]}
    assert {str(settings.model["anomaly"].path), "/etc/streamer/settings.toml"} == mounted
    assert settings.kafka.bootstrap == "kafka:9092"
    assert f"--topic={settings.input.topic}" in SERVICES["topics"]["command"]
    assert f"--topic={settings.input.topic}" in SERVICES["load"]["command"]
    assert f"--bootstrap={settings.kafka.bootstrap}" in SERVICES["load"]["command"]
    assert f"--bootstrap-server={settings.kafka.bootstrap}" in SERVICES["topics"]["command"]
    assert service["image"] == SERVICES["load"]["image"] == f"streamer:{__version__}"
    assert service["deploy"]["replicas"] == 2
    grace_s = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_s * 1000 > settings.delivery.drain_timeout_ms + settings.delivery.commit_timeout_ms


def test_the_load_generator_knows_its_options() -> None:
    words = [word for word in SERVICES["load"]["command"] if not word.startswith("--bootstrap")]
    done = CliRunner().invoke(app, [*words, "--bootstrap=127.0.0.1:1", "--events=-1"])
    assert "events must not be negative" in f"{done.exception} {done.output}", "an option is refused before"


def test_prometheus_finds_the_service_and_grafana_finds_prometheus() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert discovery["names"] == ["streamer"]
    assert discovery["port"] == 8080
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/streamer.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert Path(mounts["./grafana/streamer.json"]).parent == Path(provider["options"]["path"])
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounts["./grafana/streamer.json"] == home
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
