#!/usr/bin/env python3
"""A real Apache Kafka on this machine: one or three KRaft nodes on loopback, for development, tests and benchmarks.

    python deploy/kafka/local_kafka.py [--nodes 3] [--data DIR] [--port N]     until Ctrl-C or SIGTERM
    python deploy/kafka/local_kafka.py [--nodes 3] -- COMMAND ...              as long as COMMAND runs

COMMAND finds the address in ``KAFKA_BOOTSTRAP`` and the brokers' process ids in ``KAFKA_PIDS`` (both comma-separated);
its exit status is returned. As a library: ``with LocalKafka(nodes=3) as kafka: kafka.bootstrap``.

Needs Java 17 and Maven, nothing else: the jars come through Maven once and are kept in the user's cache directory.
Long: it is one file because it runs before there is any environment, with Python alone.

The brokers end with their caller, however that ends: a watchdog process holds a pipe from it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

POM = Path(__file__).resolve().with_name("pom.xml")
HOST = "127.0.0.1"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
# Heap and collector as Kafka's own start scripts have them. With a smaller heap and the serial collector the broker stood
# still for 30 to 45 ms every two seconds at 2,000 events/s: 1.4 % of the time, which is what a p99 is made of.
JVM_OPTIONS = (
    *("-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"),
    *("-XX:+ExplicitGCInvokesConcurrent", "-XX:+ExitOnOutOfMemoryError", "-Dlog4j2.level=WARN"),
)

# Runs in an own session and outlives the caller by the moment that it takes to kill the brokers. It finds them by
# their command line, which names the data directory, so there is no gap between a broker's start and its being known.
WATCHDOG = r"""
import os, shutil, signal, sys, time
data, temporary = sys.argv[1], sys.argv[2] == "1"
for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(ignored, signal.SIG_IGN)
asked_to_leave = sys.stdin.buffer.read() == b"done"
quiet = 0
while not asked_to_leave and quiet < 10:
    quiet += 1
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
            if b"kafka.Kafka" in words and any(w.startswith(os.fsencode(data) + b"/node-") for w in words):
                os.kill(int(pid), signal.SIGKILL)
                quiet = 0
        except OSError:
            pass
    time.sleep(0.05)
if temporary and not asked_to_leave:
    shutil.rmtree(data, ignore_errors=True)
"""


class LocalKafkaError(RuntimeError):
    """The local Kafka cannot be started; the message says what to do."""


def missing_tools() -> list[str]:
    """The programs that are needed and not on the PATH."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def jars() -> Path:
    """Directory of Kafka's jars, downloaded at the first call; shared by all checkouts with the same pom.xml."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamer"
    target = root / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    _require_tools()
    with maven_alone(root):
        return target if target.is_dir() else _fetch_jars(root, target)


@contextlib.contextmanager
def maven_alone(root: Path) -> Iterator[None]:
    """One Maven at a time for all that keep something in ``root``: its own repository is not made for two writers."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "maven.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_jars(root: Path, target: Path) -> Path:
    partial = Path(tempfile.mkdtemp(prefix="kafka-partial-", dir=root))
    try:
        print("local Kafka: fetching Apache Kafka's jars through Maven (once, 45 MB)", file=sys.stderr, flush=True)
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not any(partial.glob("kafka_*.jar")):
            raise LocalKafkaError(f"Maven could not fetch Kafka's jars:\n{(done.stdout + done.stderr)[-2000:]}")
        partial.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster; its directory is complete
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class LocalKafka:
    """One or three brokers (combined with controllers) as child processes; a context manager.

    ``data``: where logs live and stay; without it a temporary directory that is removed.
    ``properties``: further broker properties. ``listeners``: names of further listeners (security protocols such as
    ``SASL_SSL``), each on its own port, see ``address``. The plaintext listener always exists.
    Raises LocalKafkaError when a tool is missing or a broker does not answer in time.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        data: Path | str | None = None,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        listeners: Sequence[str] = (),
        jvm_options: Sequence[str] = JVM_OPTIONS,
    ) -> None:
        if nodes not in (1, 3):
            raise ValueError("a local Kafka has 1 or 3 nodes")
        self.nodes = nodes
        self._kept = Path(data).resolve() if data is not None else None
        self._port = port
        self._extra = dict(properties or {})
        self._listeners = ("PLAINTEXT", *listeners, "CONTROLLER")
        self._jvm_options = tuple(jvm_options)
        self._ports: dict[str, list[int]] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.data = Path()

    def __enter__(self) -> LocalKafka:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """Addresses of all nodes, comma-separated, for clients without security."""
        return self.address("PLAINTEXT")

    def address(self, listener: str) -> str:
        """Addresses of all nodes on the listener of this name, comma-separated."""
        return ",".join(f"{HOST}:{port}" for port in self._ports[listener])

    @property
    def pids(self) -> list[int]:
        """Process ids of the running nodes."""
        return [process.pid for _, process in sorted(self._processes.items())]

    def log(self, node: int) -> Path:
        """What the broker wrote to stdout and stderr."""
        return self.data / f"node-{node}" / "broker.log"

    def start(self) -> None:
        """Format the storage if it is new, start all nodes, return when every one answers and sees the others."""
        _require_tools()
        classpath = f"{jars()}/*"
        self.data = self._kept or Path(tempfile.mkdtemp(prefix="streamer-kafka-"))
        self.data.mkdir(parents=True, exist_ok=True)
        self._watch()
        try:
            self._choose_ports()
            for node in range(1, self.nodes + 1):
                self._configure(node)
            self._format(classpath)
            for node in range(1, self.nodes + 1):
                self._launch(node)
            self._await_ready(range(1, self.nodes + 1))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all nodes; a temporary data directory is removed, so its brokers are killed without ceremony."""
        for node in list(self._processes):
            self._signal(node, signal.SIGTERM if self._kept else signal.SIGKILL)
            self._signal(node, signal.SIGCONT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for node in list(self._processes):
            self._reap(node, deadline)
        if self._kept is None and self.data != Path():
            shutil.rmtree(self.data, ignore_errors=True)
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.communicate(b"done")
            self._watchdog = None

    def start_node(self, node: int) -> None:
        """Start node 1..N again on its old port and data; returns when it answers and sees the other running nodes."""
        if node in self._processes:
            raise ValueError(f"node {node} is running")
        self._launch(node)
        self._await_ready([node])

    def stop_node(self, node: int) -> None:
        """SIGTERM, as an orderly shutdown does; returns when the process has ended."""
        self._signal(node, signal.SIGTERM)
        self._reap(node, time.monotonic() + STOP_TIMEOUT_S)

    def kill_node(self, node: int) -> None:
        """SIGKILL, as a crash; returns when the process has ended."""
        self._signal(node, signal.SIGKILL)
        self._reap(node, time.monotonic() + STOP_TIMEOUT_S)

    def pause_node(self, node: int) -> None:
        """SIGSTOP: connections stay open and nothing answers, as in a long pause of the machine. Returns when it has stopped:
        a broker's many threads do so one after the other, and until then they answer."""
        self._signal(node, signal.SIGSTOP)
        os.waitid(os.P_PID, self._processes[node].pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume_node(self, node: int) -> None:
        """SIGCONT after ``pause_node``."""
        self._signal(node, signal.SIGCONT)

    def restore(self) -> None:
        """Let all nodes run and answer again, whatever was done to them."""
        for node in range(1, self.nodes + 1):
            if node in self._processes and self._processes[node].poll() is not None:
                self._processes.pop(node)
            if node in self._processes:
                self.resume_node(node)
            else:
                self._launch(node)
        self._await_ready(range(1, self.nodes + 1))

    def _signal(self, node: int, number: signal.Signals) -> None:
        process = self._processes.get(node)
        if process is None:
            raise ValueError(f"node {node} is not running")
        process.send_signal(number)

    def _reap(self, node: int, deadline: float) -> None:
        process = self._processes.pop(node)
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _watch(self) -> None:
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WATCHDOG, str(self.data), "0" if self._kept else "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _choose_ports(self) -> None:
        free = _free_ports()
        self._ports = {name: [next(free) for _ in range(self.nodes)] for name in self._listeners}
        if self._port is not None:
            self._ports["PLAINTEXT"] = [self._port + i for i in range(self.nodes)]
            for port in self._ports["PLAINTEXT"]:
                if not _is_free(port):
                    raise LocalKafkaError(f"port {port} on {HOST} is taken; choose another --port or leave it out")

    def _configure(self, node: int) -> None:
        home = self.data / f"node-{node}"
        home.mkdir(exist_ok=True)
        at = {name: f"{name}://{HOST}:{ports[node - 1]}" for name, ports in self._ports.items()}
        protocols = ",".join(f"{name}:{'PLAINTEXT' if name == 'CONTROLLER' else name}" for name in at)
        replicas = str(self.nodes)
        isr = "2" if self.nodes > 1 else "1"
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(node),
            "controller.quorum.voters": ",".join(
                f"{i}@{HOST}:{port}" for i, port in enumerate(self._ports["CONTROLLER"], 1)
            ),
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join(at.values()),
            "advertised.listeners": ",".join(at[name] for name in at if name != "CONTROLLER"),
            "listener.security.protocol.map": protocols,
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(home / "log"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            "min.insync.replicas": isr,
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": isr,
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": isr,
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            # Sized for a small machine: fewer threads, and 16 instead of 128 MiB for the cleaner's map of keys.
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            "num.recovery.threads.per.data.dir": "1",
            "log.cleaner.dedupe.buffer.size": str(16 << 20),
            **self._extra,
        }
        text = "".join(f"{key}={_escaped(value)}\n" for key, value in properties.items())
        (home / "server.properties").write_text(text, encoding="latin-1", errors="backslashreplace")

    def _format(self, classpath: str) -> None:
        """One run of Kafka's own tool; the other nodes' storage differs in the two ids of meta.properties only."""
        first = self.data / "node-1" / "log"
        if not (first / "meta.properties").exists():
            settings = str(self.data / "node-1" / "server.properties")
            tool = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classpath, "kafka.tools.StorageTool"]
            done = subprocess.run(
                [*tool, "format", "-t", _random_id(), "-c", settings], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise LocalKafkaError(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-2000:]}")
        for node in range(2, self.nodes + 1):
            home = self.data / f"node-{node}" / "log"
            if not (home / "meta.properties").exists():
                shutil.copytree(first, home, dirs_exist_ok=True)
                lines = (first / "meta.properties").read_text().splitlines()
                own = {"node.id": str(node), "directory.id": _random_id()}
                changed = [f"{k}={own.get(k, v)}" for k, _, v in (line.partition("=") for line in lines if "=" in line)]
                (home / "meta.properties").write_text("\n".join(changed) + "\n")

    def _launch(self, node: int) -> None:
        command = ["java", *self._jvm_options, "-cp", f"{jars()}/*", "kafka.Kafka"]
        with self.log(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [*command, str(self.data / f"node-{node}" / "server.properties")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the caller, who then stops the brokers
            )

    def _await_ready(self, nodes: Sequence[int]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        running = set(self._processes)
        for node in nodes:
            while not running <= brokers_seen_by(self._ports["PLAINTEXT"][node - 1]):
                if self._processes[node].poll() is not None:
                    raise LocalKafkaError(f"node {node} ended while starting:\n{self._tail(node)}")
                if time.monotonic() > deadline:
                    raise LocalKafkaError(f"node {node} did not answer in {START_TIMEOUT_S:.0f} s:\n{self._tail(node)}")
                time.sleep(POLL_S)

    def _tail(self, node: int) -> str:
        return self.log(node).read_text(errors="replace")[-2000:]


def brokers_seen_by(port: int) -> set[int]:
    """Node ids in the broker's answer to a metadata request (version 1); empty while it does not answer."""
    client = b"local-kafka"
    body = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    try:
        with socket.create_connection((HOST, port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            stream = connection.makefile("rb")
            (size,) = struct.unpack(">i", stream.read(4))
            answer = stream.read(size)
        return set(_broker_ids(answer))
    except (OSError, struct.error):
        return set()


def _broker_ids(answer: bytes) -> Iterator[int]:
    _, count = struct.unpack_from(">ii", answer)
    at = 8
    for _ in range(count):
        node, length = struct.unpack_from(">ih", answer, at)
        at += 6 + length + 4
        (rack,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(rack, 0)
        yield node


def _free_ports() -> Iterator[int]:
    """Distinct free ports below the range that outgoing connections use, so that a stopped node finds its port free."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        lowest = 32768
    candidates = list(range(10_000, lowest)) if lowest > 11_000 else list(range(lowest, 65_536))
    random.shuffle(candidates)
    return filter(_is_free, candidates)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _random_id() -> str:
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # Kafka's tool would take it for an option
            return text


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _require_tools() -> None:
    if missing := missing_tools():
        raise LocalKafkaError(
            f"{' and '.join(missing)} not found: a local Kafka needs Java 17 or newer and Maven (on Debian: "
            "apt-get install openjdk-17-jre-headless maven), or point KAFKA_BOOTSTRAP at an existing cluster"
        )


class _Ended(Exception):
    pass


def _end(number: int, frame: object) -> None:
    raise _Ended


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="A real Apache Kafka on loopback.")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--data", type=Path, help="keep the logs in this directory (default: temporary)")
    parser.add_argument("--port", type=int, help="first port for clients (default: free ones)")
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="run this and stop when it ends")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    try:
        with LocalKafka(options.nodes, data=options.data, port=options.port) as kafka:
            if options.command:
                return _run(options.command, kafka)
            pids = ",".join(map(str, kafka.pids))
            print(f"KAFKA_BOOTSTRAP={kafka.bootstrap}\nKAFKA_PIDS={pids}", flush=True)
            print(f"local Kafka: {kafka.nodes} node(s), data in {kafka.data}; Ctrl-C stops it", file=sys.stderr)
            while True:
                signal.pause()
    except _Ended:
        return 0
    except LocalKafkaError as error:
        print(f"local Kafka: {error}", file=sys.stderr)
        return 4


def _run(command: Sequence[str], kafka: LocalKafka) -> int:
    environment = {**os.environ, "KAFKA_BOOTSTRAP": kafka.bootstrap, "KAFKA_PIDS": ",".join(map(str, kafka.pids))}
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        print(f"local Kafka: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
