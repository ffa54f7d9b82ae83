"""The status page in a real browser, over a real service and a real Kafka: under load, during a restore, with Kafka down.

``STREAMER_SCREENSHOTS=FOLDER`` keeps the pictures, which are to be looked at."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser
from local_kafka import LocalKafka, jars
from observing import get
from processes import COMMAND, Running, environment, flags, running, until
from serving import event, produce
from tooling import require_tool

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "streamer" / "tools" / "demo_model" / "model.onnx"
PARTITIONS, FEATURES, STREAMS, LOADED = 6, 8, 120_000, 500
SLOW_BYTES_PER_S = 1_500_000
PHONE, DESK = 360, 1180
KNOWN_EVENTS = {
    "started",
    "rebalance",
    "live",
    "checkpoint",
    "summary",
    "failed",
    "commit_not_done",
    "stopped",
    "rejected",
}

# Ratio of luminances (WCAG 2) between each piece of text and the background behind it; the faintest counts.
FAINTEST = """
const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return {rgb: [r, g, b], a}; };
const luminance = rgb => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = node => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor);
  if (c.a) return c.rgb; } return [255, 255, 255]; };
let worst = [99, ""];
for (const node of document.body.querySelectorAll("*")) {
  const own = [...node.childNodes].filter(n => n.nodeType === 3 && n.data.trim()).map(n => n.data.trim()).join(" ");
  if (!own || !node.getClientRects().length) continue;
  const [a, b] = [luminance(parse(getComputedStyle(node).color).rgb), luminance(behind(node))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst[0]) worst = [ratio, own];
}
return worst;
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as window:
        yield window


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("STREAMER_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Page:
    """The status page in a window; asks what a person sees."""

    def __init__(self, window: Browser, url: str, pictures: Path) -> None:
        self._window, self._pictures = window, pictures
        window.size(DESK)
        window.open("about:blank")  # the page before, whose instance may be gone, asks and complains no more
        window.complaints()
        window.open(f"{url}/")

    @property
    def headline(self) -> str:
        return str(self._window.run("return document.querySelector('h1').textContent"))

    def text(self, selector: str) -> str:
        return str(self._window.run("return document.querySelector(arguments[0]).textContent", selector))

    def holds(self, parts: dict[str, str]) -> bool:
        """Whether each selector's text holds its part, all at one moment."""
        script = (
            "return arguments[0].every(([where, part]) => document.querySelector(where).textContent.includes(part))"
        )
        return bool(self._window.run(script, list(parts.items())))

    def until(self, part: str, seconds: float = 60) -> str:
        """The headline as soon as it holds ``part``."""

        def seen() -> str:
            line = self.headline
            return line if part in line else ""

        return until(seen, f"a headline with {part!r}", seconds)

    def look(self, name: str, *, text: str) -> None:
        """Pictures on a desk, on a phone and without colour; on each the state is told, nothing is cut off or faint."""
        for width, dark in ((DESK, False), (DESK, True), (PHONE, False), (PHONE, True)):
            self._window.size(width, dark=dark)
            self._window.screenshot(self._pictures / f"{name}-{width}{'-dark' if dark else ''}.png")
            assert text in self.headline
            wide = self._window.run("return document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{wide} px are beyond the right edge at {width} px"
            ratio, faint = self._window.run(FAINTEST)
            assert ratio >= 4.5, f"{faint!r} is too faint: {ratio:.1f}"
        self._window.size(PHONE)
        self._window.devtools("Emulation.setEmulatedVisionDeficiency", type="achromatopsia")
        self._window.screenshot(self._pictures / f"{name}-no-colour.png")
        self._window.devtools("Emulation.setEmulatedVisionDeficiency", type="none")
        self._window.size(DESK)
        # the browser itself notes that an instance which is gone refuses connections; the page says it in words
        assert [text for text in self._window.complaints() if "ERR_CONNECTION_REFUSED" not in text] == []


def settings(kafka: LocalKafka, topic: str = "telemetry") -> list[str]:
    return list(
        flags(
            {
                "kafka.bootstrap": kafka.bootstrap,
                "kafka.group": f"{topic}-anomaly",
                "kafka.instance": "pod-0",
                "kafka.session_timeout_ms": 6000,
                "kafka.connect_timeout_ms": 2000,
                "kafka.request_timeout_ms": 5000,
                "input.topic": topic,
                "output.topic": f"{topic}-scores",
                "delivery.checkpoint_interval_ms": 500,
                "model.anomaly.path": MODEL,
                "http.port": 0,
            }
        )
    )


@contextmanager
def load(kafka: LocalKafka) -> Iterator[None]:
    """``streamer produce`` until the end."""
    command = [
        "produce",
        "--topic",
        "telemetry",
        "--bootstrap",
        kafka.bootstrap,
        "--rate",
        "2000",
        "--streams",
        str(LOADED),
    ]
    process = subprocess.Popen([*COMMAND, *command, "--broken", "0.001"], env=environment(), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def quiet_lines(service: Running) -> list[dict[str, Any]]:
    """Every line of the log is one JSON object of a kind that we know, or comes from the Kafka client."""
    documents = [json.loads(line) for line in service.log().splitlines()]
    unknown = {document["event"] for document in documents if not document["logger"].startswith("aiokafka")}
    assert {event for event in unknown if not event.startswith("http on ")} <= KNOWN_EVENTS
    return documents


@pytest.fixture(scope="module")
def kafka_here() -> Iterator[LocalKafka]:
    require_tool("java", "mvn")
    with LocalKafka() as kafka:
        yield kafka


async def test_under_load_and_with_kafka_down(kafka_here, create_topics, chromium, pictures, tmp_path) -> None:
    await create_topics(kafka_here.bootstrap, {"telemetry": PARTITIONS})
    await asyncio.to_thread(_load_and_outage, kafka_here, chromium, pictures, tmp_path)


async def test_during_a_restore(kafka_here, create_topics, chromium, pictures, tmp_path) -> None:
    await create_topics(kafka_here.bootstrap, {"machines": PARTITIONS})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, FEATURES)).round(3).tolist()
    many = ((row % PARTITIONS, b"machine-%06d" % row, event(x[row % 1000]), []) for row in range(STREAMS))
    await produce(kafka_here.bootstrap, "machines", many)
    await asyncio.to_thread(_restore, kafka_here, chromium, pictures, tmp_path)


def _load_and_outage(kafka: LocalKafka, chromium: Browser, pictures: Path, folder: Path) -> None:
    with running(folder, *settings(kafka)) as service:
        page = Page(chromium, service.url, pictures)
        page.until("Live: 6 partitions")

        def shown() -> float:
            """The rate, as a person reads it."""
            return float(page.text(".tile b").replace("\u202f", ""))

        with load(kafka):
            points = "return document.querySelector('.tile polyline').getAttribute('points').split(' ').length"
            seconds = 60 if "STREAMER_SCREENSHOTS" in os.environ else 10  # kept pictures show a whole minute
            until(lambda: chromium.run(points) > seconds - 1, f"{seconds} s of load on the page", 2 * seconds + 30)
            service.wait_for(lambda s: s["predictions_per_second"] > 1_000 and s["latency_s"] and s["rejected"], "load")
            until(lambda: shown() > 1_000, "the rate on the page")
            page.until("Live")
            page.look("load", text="Live: 6 partitions")
            for words in ("record to answer", "fetch", "decode", "wait", "run", "encode", "commit"):
                assert words in page.text("#latency")
            assert page.text("#partitions").count("live") == PARTITIONS
            assert "anomaly, version" in page.text("#models")
            assert "undecodable" in page.text("#streams")
            assert page.text("#errors") == "none"
            assert "(this one)6 partitions, 127.0.0.1" in page.text("#members")
            assert "onnxruntime" in page.text("#models")
            assert "group telemetry-anomaly" in page.text("#facts")
            kafka.kill_node(1)
            page.until("Kafka has not answered")
            service.wait_for(lambda s: s["outage_s"] and s["outage_s"] > 10, "an outage whose length is told")
            until(lambda: "Kafka at" in page.text("#errors"), "the error on the page")
            page.look("outage", text="Nothing is lost")
            assert page.text("#partitions").count("outage") == PARTITIONS, "the table agrees with the headline"
            assert get(f"{service.url}/readyz")[0] == 503
            kafka.start_node(1)
            page.until("Live", seconds=120)
        assert service.stop() == 0, service.log()
    lines = quiet_lines(service)
    named = [line["event"] for line in lines]
    assert named[0] == "started"
    assert named[-1] == "stopped"
    texts = [line["error"] for line in lines if line["event"] == "failed"]
    assert len(texts) <= 2 * len(set(texts)), "an error that repeats is counted, not logged each time"


def _quota(kafka: LocalKafka, *change: str) -> None:
    """Bytes per second that the broker gives to the service: a restore becomes slow enough to be looked at."""
    tool = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*", "kafka.admin.ConfigCommand"]
    client = ["--bootstrap-server", kafka.bootstrap, "--entity-type", "clients", "--entity-name", "streamer"]
    done = subprocess.run([*tool, *client, "--alter", *change], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _restore(kafka: LocalKafka, chromium: Browser, pictures: Path, folder: Path) -> None:
    with running(folder, *settings(kafka, "machines")) as service:
        service.wait_for(lambda s: s["streams_resident"] >= STREAMS and s["lag"] == 0, "all streams are there", 120)
        page = Page(chromium, service.url, pictures)
        page.until("nothing behind")
        until(lambda: max(p["replay_records"] for p in service.status()["partitions"].values()) < 100, "a checkpoint")
        service.process.kill()
        page.until("This instance has not answered")
        page.look("silent", text="What is below is old")
    _quota(kafka, "--add-config", f"consumer_byte_rate={SLOW_BYTES_PER_S}")
    with running(folder, *settings(kafka, "machines")) as service:
        page = Page(chromium, service.url, pictures)
        service.wait_for(lambda s: s["restore"] and 0.2 < s["restore"]["share"] < 0.5, "a restore under way", 120)
        # in one look: while the pictures are made, partitions that were restoring become live and others wait their turn
        until(lambda: page.holds({"h1": " left, 6 partitions", "#partitions": "restoring"}), "a restore on the page")
        page.look("restore", text="Restoring: ")
        _quota(kafka, "--delete-config", "consumer_byte_rate")
        page.until("Live: 6 partitions, nothing behind", seconds=120)
        assert service.status()["streams_resident"] == STREAMS
        assert service.stop() == 0, service.log()
    quiet_lines(service)


async def test_what_others_wrote_stays_text(kafka_here, create_topics, chromium, pictures, tmp_path) -> None:
    """A name with markup in it is shown, never run, and the page asks for nothing from elsewhere."""
    await create_topics(kafka_here.bootstrap, {"hostile": 1})
    name = "<img src=x onerror=document.title='run'>"
    changed = {
        "kafka.instance": name,
        "input.topic": "hostile",
        "output.topic": "hostile.out",
        "kafka.group": "hostile",
    }

    def look() -> None:
        with running(tmp_path, *settings(kafka_here), *flags(changed)) as service:
            page = Page(chromium, service.url, pictures)
            page.until("Live: 1 partition")
            assert name in page.text("#facts")
            assert chromium.run("return document.images.length") == 0
            assert "run" not in chromium.run("return document.title")
            fetched = chromium.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
            assert set(fetched) == {f"{service.url}/status"}
            assert chromium.complaints() == []
            assert service.stop() == 0

    await asyncio.to_thread(look)
