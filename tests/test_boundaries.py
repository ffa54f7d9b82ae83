"""Who may import whom. The table is the architecture: a module that is not in it fails, so the rules stay complete."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CORE = {"core", "errors"}
PARTS = {"codec", "model", "state", "windows", "scheduler", "checkpoint"}
MODEL = {"graphfile", "signature", "probe"}
DECIDING = {"rollout", "lane", "windowlane", "rounds", "processor", "idleness"}
PURE = {*CORE, "contract", *PARTS, *MODEL, "chance", *DECIDING}
ADAPTERS = {"kafka", "telemetry", "http"}
SHELL = {*PURE, *ADAPTERS, "settings", "clock", "recovery", "service", "assemble"}

# Module or package of streamer/ -> what it may import of streamer/. Siblings do not import each other; the modules
# inside a package do.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "errors": set(),
    "contract": CORE,
    **{part: {*CORE, "contract"} for part in PARTS | MODEL},
    # The model is four files: what a graph says of itself, its signature, the running of it, and a trial of it.
    "model": {*CORE, "contract", *MODEL},
    "probe": {*CORE, "contract", "signature", "model"},
    # The processor is five files: what is generated, how a model is called for each event, how over windows, what goes
    # into the changelog, and what decides.
    "chance": CORE,
    "rollout": {*CORE, "contract", "chance", "checkpoint", "model", "state"},
    "lane": {*CORE, "codec", "model", "state", "rollout"},
    "windowlane": {*CORE, "checkpoint", "model", "scheduler", "windows", "lane"},
    "rounds": {*CORE, "checkpoint", "state", "rollout", "lane", "windowlane"},
    "processor": {*CORE, "contract", *PARTS, "rollout", "lane", "windowlane", "rounds"},
    "idleness": set(),
    "clock": set(),
    "settings": {"errors"},
    **dict.fromkeys(ADAPTERS, PURE),
    "recovery": {*PURE, "kafka"},
    "service": SHELL - {"service", "assemble"},
    "assemble": SHELL - {"assemble"},
    "tools": SHELL,
    "cli": {*SHELL, "tools"},
    "__main__": {"cli"},
    "__init__": PURE,  # what the package offers as a library
}

# Foreign package -> the modules that may import it, as names or as names of packages.
TRAINING = ("torch", "onnx", "onnxscript", "sklearn", "matplotlib", "scipy")
CONFINED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAINING, ("export",)),
    "onnxruntime": ("streamer.model",),
    "aiokafka": ("streamer.kafka", "streamer.tools.bench"),  # the bench's naive loop is what it is compared with
    "prometheus_client": ("streamer.telemetry", "streamer.http"),
    "structlog": ("streamer.telemetry", "streamer.http"),
    "confluent_kafka": ("streamer.tools",),
    "pydantic": ("streamer.settings",),
    "pydantic_settings": ("streamer.settings",),
    "uvloop": ("streamer.service", "streamer.cli"),
    "typer": ("streamer.cli", "streamer.tools", "export"),
    "rich": ("streamer.cli", "streamer.tools", "export"),
}

# The core decides from its arguments only, so that a log can be replayed through it.
IMPURE = {"asyncio", "time", "random", "secrets", "uuid", "threading", "socket", "subprocess", "multiprocessing"}


def modules(package: str) -> dict[str, ast.Module]:
    """Dotted name -> parsed source, of every file in the package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(module: str, tree: ast.Module, known: Mapping[str, object]) -> Iterator[str]:
    """Dotted names of everything imported, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in known or f"{name}.__init__" in known else base


def breaches(sources: Mapping[str, ast.Module]) -> list[str]:
    """One sentence for each import that the tables forbid."""
    found = []
    for module, tree in sources.items():
        top, _, rest = module.partition(".")
        own = rest.split(".")[0]
        if top == "streamer" and own not in MAY_IMPORT:
            found.append(f"{module} is not in MAY_IMPORT: say there what it may import")
            continue
        for name in imports(module, tree, sources):
            first, _, inner = name.partition(".")
            target = inner.split(".")[0]
            allowed = CONFINED.get(first)
            if allowed and not any(module == place or module.startswith(place + ".") for place in allowed):
                found.append(f"{module} imports {name}, which belongs to {', '.join(allowed)}")
            if top != "streamer":
                continue
            if first == "export":
                found.append(f"{module} imports {name}: the service never imports export")
            if first == "streamer" and target and target != own and target not in MAY_IMPORT[own]:
                found.append(f"{module} imports {name}, {own} may not import {target}")
            if own in PURE and first in IMPURE:
                found.append(f"{module} imports {name}: the core takes time and chance as arguments")
    return found


def test_imports_keep_to_the_architecture():
    sources = modules("streamer") | modules("export")
    assert {"streamer.core", "streamer.processor", "export.model"} <= set(sources)
    assert breaches(sources) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("streamer.state", "from streamer.scheduler import Scheduler"),
        ("streamer.state", "from streamer import scheduler"),
        ("streamer.state", "from . import scheduler"),
        ("streamer.state", "from .scheduler import Scheduler"),
        ("streamer.state", "import streamer.scheduler"),
        ("streamer.state", "def late():\n    import time"),
        ("streamer.processor", "from asyncio import sleep"),
        ("streamer.processor", "from streamer.kafka import client"),
        ("streamer.errors", "import streamer.core"),
        ("streamer.settings", "from streamer.contract import Contract"),
        ("streamer.service", "from aiokafka import AIOKafkaConsumer"),
        ("streamer.service", "import torch.nn"),
        ("streamer.codec", "import onnxruntime as ort"),
        ("streamer.tools.produce", "import aiokafka"),
        ("streamer.tools.demo", "from streamer.cli import app"),
        ("streamer.cli", "from export import train"),
        ("streamer.unknown", "x = 1"),
        ("export.train", "import onnxruntime"),
    ],
)
def test_a_breach_is_found(module, line):
    sources = {"streamer.scheduler": ast.parse(""), module: ast.parse(line)}
    assert len(breaches(sources)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("streamer.kafka.input", "from .client import Connection\nimport asyncio, time, aiokafka"),
        ("streamer.kafka.restore", "from streamer.checkpoint import decode_progress"),
        ("streamer.tools.bench", "import aiokafka\nfrom streamer.tools.produce import produce"),
        ("streamer.telemetry", "from streamer import __version__\nimport prometheus_client"),
        ("streamer.model", "import onnxruntime"),
        ("export.verify", "import torch, onnx\nfrom streamer.model import Model"),
    ],
)
def test_what_the_architecture_allows_is_no_breach(module, line):
    sources = {name: ast.parse("") for name in ("streamer.kafka.client", "streamer.tools.produce", "streamer.model")}
    assert breaches(sources | {module: ast.parse(line)}) == []


def test_nothing_of_the_service_loads_torch():
    names = [name.removesuffix(".__init__") for name in modules("streamer") if not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        f"print([name for name in {TRAINING!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
