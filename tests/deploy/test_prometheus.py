"""A real Prometheus scrapes a running service: every rule is evaluated on it, every query of the dashboard has an answer."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from observing import ROOT, Process, Prometheus, eventually, get, process, prometheus, serving

from streamer.tools.demo import MODEL

pytestmark = pytest.mark.slow

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "streamer.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
RANGE_S = 15


@dataclass
class Running:
    service: Process
    prometheus: Prometheus


def settings_file(folder: Path, bootstrap: str, topic: str) -> Path:
    """A step model with a score, and a model in window mode, on the same input."""
    pytest.importorskip("onnx")
    from onnx_models import lstm, lstm_fields, save

    fields = lstm_fields(8, 4, name="bi", mode="window", states=None)
    fields["outputs"] = [{"name": "y", "shape": ["batch", "time", 8], "per": "event"}]
    save(lstm(8, 4, bidirectional=True), folder / "bi.onnx", fields)
    path = folder / "settings.toml"
    path.write_text(f"""
[kafka]
bootstrap = "{bootstrap}"
group = "{topic}.group"
[input]
topic = "{topic}"
[output]
topic = "{topic}.out"
[delivery]
checkpoint_interval_ms = 1000
[model.anomaly]
path = "{MODEL}"
[model.bi]
path = "bi.onnx"
window = {{ kind = "tumbling", size_ms = 500 }}
""")
    return path


@pytest.fixture(scope="module")
def running(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Under a steady load with broken records and late events, until all of it shows in Prometheus."""
    folder = tmp_path_factory.mktemp("prometheus")
    topic = f"observed.{folder.parent.name}.{folder.name}"
    load = [
        sys.executable, "-m", "streamer.cli", "produce", "--bootstrap", kafka, "--topic", topic, "--create", "2",
        "--rate", "300", "--streams", "50", "--broken", "0.05", "--disorder-ms", "400", "--duration-s", "600",
    ]  # fmt: skip
    with process(load, folder / "load.log"):
        settings = settings_file(folder, kafka, topic)
        check = [sys.executable, "-m", "streamer.cli", "check", "-c", str(settings)]
        # the load creates the topic; a service without its topic ends with exit code 4
        eventually("the topic exists", lambda: _runs(check, folder / "check.log"))
        with serving(settings, folder / "service.log") as service:
            service.answers("/readyz")
            with prometheus(folder, service.url.removeprefix("http://")) as server:
                shown = "increase(streamer_windows_closed_total[10s]) > 0 and increase(streamer_checkpoint_bytes_total[10s]) > 0"
                eventually(
                    "windows close, checkpoints are written", lambda: server.query(shown.replace(" and", " and on ()"))
                )
                enough = f"count_over_time(streamer_build_info[{RANGE_S}s]) >= {RANGE_S - 2}"
                eventually("a whole range of samples is there", lambda: server.query(enough))
                yield Running(service, server)


def _runs(command: list[str], log: Path) -> bool:
    with process(command, log) as found:
        return found.child.wait(60) == 0


def filled(expression: str) -> str:
    """As Grafana asks it: with the variables' values."""
    for name, value in (("__rate_interval", f"{RANGE_S}s"), ("job", "streamer"), ("instance", ".*")):
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, f"a variable that the test does not know: {expression}"
    return expression


def test_the_rules_are_evaluated_without_an_error_and_nothing_fires(running: Running) -> None:
    def evaluated() -> list[Any] | None:
        rules = [rule for group in running.prometheus.api("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = eventually("every rule was evaluated", evaluated)
    assert len(rules) >= 15
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    # One record of twenty is broken, and event times come up to 400 ms late: those two alerts wait for their time.
    pending = {alert["labels"]["alertname"] for alert in running.prometheus.api("alerts")["alerts"]}
    assert {"StreamerRejects", "StreamerLateEvents"} <= pending
    assert running.prometheus.firing() <= {"StreamerRejects"}


def test_recorded_series_agree_with_the_service(running: Running) -> None:
    ((labels, rate),) = running.prometheus.query("streamer:records:rate5m")
    assert labels == {"__name__": "streamer:records:rate5m", "job": "streamer"}
    ((_, expected),) = running.prometheus.query("sum(rate(streamer_records_total[5m]))")
    assert rate == pytest.approx(expected, rel=0.2)  # evaluated a second apart, while both grow
    ((_, lag),) = running.prometheus.query("streamer:lag_records:sum")
    assert 0 <= lag < 10_000


@pytest.mark.parametrize(("panel", "expression"), QUERIES, ids=[f"{title}-{n}" for n, (title, _) in enumerate(QUERIES)])
def test_a_query_of_the_dashboard_has_an_answer(running: Running, panel: str, expression: str) -> None:
    query = filled(expression)
    known = set(running.prometheus.api("label/__name__/values"))
    names = set(re.findall(r"\b(?:streamer|process)[_:][a-z0-9_:]+", re.sub(r"\{[^}]*\}", "", query)))
    assert names <= known, f"{panel!r} reads unknown metrics {sorted(names - known)}"
    found = running.prometheus.query(query)
    assert found, f"{panel!r} is empty: {query}"
    assert all(math.isfinite(value) for _, value in found), found


def test_every_legend_names_labels_that_its_query_returns(running: Running) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for labels, _ in running.prometheus.query(filled(target["expr"])):
                assert wanted <= set(labels), f"{panel['title']!r}: {target['legendFormat']}"


def test_the_variables_of_the_dashboard_have_values(running: Running) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match
            series = running.prometheus.api("series", **{"match[]": filled(match[1])})
            assert {each[match[2]] for each in series} - {""}, variable["name"]


def test_every_metric_of_the_service_has_a_place_on_the_dashboard(running: Running) -> None:
    """So that a new metric is not forgotten; a histogram is one metric."""
    code, body = get(f"{running.service.url}/metrics")
    assert code == 200
    exported = set(re.findall(r"^# TYPE (streamer_\w+) ", body, re.M))
    shown = " ".join(expression for _, expression in QUERIES)
    assert [name for name in sorted(exported) if name not in shown and name.removesuffix("_total") not in shown] == []


def test_the_dashboard_is_portable_and_lies_on_a_grid() -> None:
    assert DASHBOARD["uid"] == "streamer"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + dx, grid["y"] + dy) for dx in range(grid["w"]) for dy in range(grid["h"])}
        assert not taken & cells, f"{panel['title']!r} lies on another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    text = json.dumps(DASHBOARD)
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"streamer", "${datasource}"}
