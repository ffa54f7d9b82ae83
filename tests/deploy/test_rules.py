"""Alert rules: Prometheus' own checker and unit tests, a firing and a silent case for each, and metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tooling import require_tool

from streamer.observe.telemetry import Telemetry

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule["alert"] for rule in RULES if "alert" in rule]
CASES = [
    check for test in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"] for check in test["alert_rule_test"]
]  # fmt: skip


def promtool(*arguments: str) -> None:
    (program,) = require_tool("promtool")
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_every_case_of_the_rules_holds() -> None:
    promtool("test", "rules", "rules_test.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    fires = {bool(case["exp_alerts"]) for case in CASES if case["alertname"] == alert}
    assert fires == {True, False}


def test_rules_read_only_metrics_that_the_service_has_or_that_they_record() -> None:
    families = text_string_to_metric_families(Telemetry([("m", "1", "ab" * 32)], "0").metrics().decode())
    known = {sample.name for family in families for sample in family.samples} | {
        # these have no sample before a partition is owned
        "streamer_partition_lag_records",
        "streamer_partition_blocked_seconds",
        "streamer_replay_records",
    }
    known |= {rule["record"] for rule in RULES if "record" in rule}
    read = {name for rule in RULES for name in re.findall(r"\bstreamer[_:][a-z0-9_:]+", rule["expr"])}
    assert read <= known


def test_an_alert_says_how_bad_it_is_and_in_one_sentence_what_happens() -> None:
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert set(rule["annotations"]) == {"summary"}
