"""Who may import whom. The table is the architecture: a module that is not in it fails, so the rules stay complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The floors of the house, from the ground up. A room imports from floors below its own; rooms of one floor do not know
# each other. A room that is not here fails, so the rules stay complete.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core", "errors", "words", "toml"),
    ("settings", "modelfile"),
    ("records", "windows", "state"),
    ("generate", "emission"),
    ("engine",),
    ("kafka", "observe", "library"),
    ("service",),
    ("tools",),
    ("cli",),
)
PURE = {
    "core",
    "errors",
    "words",
    "toml",
    "settings",
    "modelfile",
    "records",
    "windows",
    "state",
    "generate",
    "emission",
}
PURE |= {"engine"}
"""What decides: from its arguments only, so that a log can be replayed through it. Settings are values here: it never reads any."""


def _may_import() -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {"__main__": {"cli", "service"}, "__init__": PURE}  # the library is what decides
    below = {"words"}  # the words of the ground are under everything
    for rooms in FLOORS:
        allowed |= {room: below & PURE if room in PURE else set(below) for room in rooms}
        below |= set(rooms)
    return allowed


MAY_IMPORT = _may_import()

# Foreign package -> the modules that may import it, as names or as names of packages.
TRAINING = ("torch", "onnx", "onnxscript", "sklearn", "matplotlib", "scipy")
CONFINED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAINING, ("export",)),
    "onnxruntime": ("streamer.modelfile.session",),
    "aiokafka": ("streamer.kafka", "streamer.tools.bench"),  # the bench's naive loop is what it is compared with
    "prometheus_client": ("streamer.observe.metrics", "streamer.observe.http"),
    "structlog": ("streamer.observe.logs",),
    "confluent_kafka": ("streamer.tools",),
    "pydantic": ("streamer.settings", "export.config"),
    "google": ("streamer.records.schemas.builtin",),
    # it ends the process on hostile bytes: tests compare with it, and the bench's naive loop reads our own values by it
    "fastavro": ("streamer.tools.bench.naive",),
    "uvloop": ("streamer.service.loop", "streamer.cli"),
    "streamer_native": ("streamer.records.formats.native",),
    "typer": ("streamer.cli", "streamer.tools", "export"),
    "rich": ("streamer.cli", "streamer.tools", "export"),
}

IMPURE = {"asyncio", "time", "random", "secrets", "uuid", "threading", "socket", "subprocess", "multiprocessing"}


PURE_MODULES = {"streamer.service.idleness"}


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
            if allowed is not None and not any(module == place or module.startswith(place + ".") for place in allowed):
                found.append(f"{module} imports {name}, which belongs to {', '.join(allowed) or 'tests'}")
            if top != "streamer":
                continue
            if first == "export":
                found.append(f"{module} imports {name}: the service never imports export")
            if first == "streamer" and target and target != own and target not in MAY_IMPORT[own]:
                found.append(f"{module} imports {name}, {own} may not import {target}")
            if (own in PURE or module in PURE_MODULES) and first in IMPURE:
                found.append(f"{module} imports {name}: the core takes time and chance as arguments")
    return found


def test_imports_keep_to_the_architecture():
    sources = modules("streamer") | modules("export")
    assert {"streamer.core", "streamer.engine.processor", "export.model"} <= set(sources)
    assert breaches(sources) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("streamer.state.arena", "from streamer.engine.scheduler import plan_steps"),
        ("streamer.state.arena", "from streamer import engine"),
        ("streamer.state.arena", "from .. import engine"),
        ("streamer.state.arena", "from ..engine.scheduler import plan_steps"),
        ("streamer.state.arena", "import streamer.engine.scheduler"),
        ("streamer.windows.rule", "from streamer.state.arena import Arena"),
        ("streamer.service.idleness", "import time"),
        ("streamer.state.arena", "def late():\n    import time"),
        ("streamer.engine.processor", "from asyncio import sleep"),
        ("streamer.engine.processor", "from streamer.kafka import client"),
        ("streamer.errors", "import streamer.core"),
        ("streamer.settings", "from streamer.modelfile.contract import Contract"),
        ("streamer.service.loop", "from aiokafka import AIOKafkaConsumer"),
        ("streamer.service.loop", "import torch.nn"),
        ("streamer.records.decode", "import onnxruntime as ort"),
        ("streamer.tools.produce", "import aiokafka"),
        ("streamer.tools.demo", "from streamer.cli import app"),
        ("streamer.cli", "from export import train"),
        ("streamer.unknown", "x = 1"),
        ("export.train", "import onnxruntime"),
    ],
)
def test_a_breach_is_found(module, line):
    sources = {"streamer.engine.__init__": ast.parse(""), module: ast.parse(line)}
    assert len(breaches(sources)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("streamer.kafka.input", "from .client import Connection\nimport asyncio, time, aiokafka"),
        ("streamer.kafka.restore", "from streamer.records.changelog import decode_progress"),
        ("streamer.tools.bench", "import aiokafka\nfrom streamer.tools.produce import produce"),
        ("streamer.observe.metrics", "from streamer import __version__\nimport prometheus_client"),
        ("streamer.modelfile.session", "import onnxruntime"),
        ("export.verify", "import torch, onnx\nfrom streamer.modelfile.model import Model"),
    ],
)
def test_what_the_architecture_allows_is_no_breach(module, line):
    sources = {
        name: ast.parse("") for name in ("streamer.kafka.client", "streamer.tools.produce", "streamer.modelfile.model")
    }
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


def test_no_module_imports_itself_over_others():
    """A circle would load only in one order. ``TYPE_CHECKING`` counts: who cannot be read apart is one module."""
    sources = modules("streamer") | modules("export")
    known = {name.removesuffix(".__init__"): name for name in sources}
    graph = {name: {known[i] for i in imports(name, tree, sources) if i in known} for name, tree in sources.items()}
    rooms = {name for name in graph if name.endswith(".__init__")}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if name in path:
            return [(*path[path.index(name) :], name)]
        if name in done:
            return []
        done.add(name)
        # a room's front door collects what its modules offer; they import each other directly
        return [circle for each in graph[name] - rooms - {name} for circle in visit(each, (*path, name))]

    assert [circle for name in graph for circle in visit(name, ())] == []


def test_the_page_of_the_house_names_every_module():
    page = (ROOT / "streamer" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "streamer").rglob("*.py"):
        room = path.parent.relative_to(ROOT / "streamer").parts[:1]
        if path.name.startswith("__") or room in (("tools",), ("observe",)) or path.parent.name == "formats":
            continue
        assert path.name in page, f"{path.relative_to(ROOT)} has no line in streamer/README.md"


def test_few_floors_carry_the_house():
    assert len(FLOORS) <= 9


LONGEST = {"file": 400, "class": 250, "function": 60}
"""Lines. What is longer says why in its docstring, in a sentence that begins with this word."""
REASON = re.compile(r"(^|\s)Long: \w.{20,}?\.", re.DOTALL)


def overlong(name: str, text: str) -> list[str]:
    """What of a file is longer than a person reads in one go and does not say why."""
    tree = ast.parse(text)
    found = [("file", name, len(text.splitlines()), ast.get_docstring(tree))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found.append((kind, f"{name}: {node.name}", lines, ast.get_docstring(node)))
    return [
        f'{what} has {lines} lines, a {kind} has at most {LONGEST[kind]}: split it, or say why not ("Long: ...")'
        for kind, what, lines, docstring in found
        if lines > LONGEST[kind] and not REASON.search(docstring or "")
    ]


def test_what_is_long_says_why():
    files = [path for room in ("streamer", "export", "deploy") for path in sorted((ROOT / room).rglob("*.py"))]
    assert [each for path in files for each in overlong(str(path.relative_to(ROOT)), path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x = 1\n" * 400, 0),
        ("x = 1\n" * 401, 1),
        ('"""Long: it runs before there is any environment."""\n' + "x = 1\n" * 400, 0),
        ('"""Long."""\n' + "x = 1\n" * 400, 1),
        ("class A:\n" + "    x = 1\n" * 250, 1),
        ("async def f():\n" + "    x = 1\n" * 60, 1),
        ("def f():\n" + "    x = 1\n" * 59, 0),
        ("class A:\n    def f(self):\n" + "        x = 1\n" * 250, 2),
    ],
)
def test_what_is_too_long_is_found(text, count):
    assert len(overlong("some.py", text)) == count
