"""What tests take from Go modules, which their publishers made: kustomize, and the schemas of Compose and KEDA."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tooling import require_tool, unavailable

# The newest that Debian 12's Go (1.19) builds.
KUSTOMIZE = ("sigs.k8s.io/kustomize/kustomize/v5", "v5.0.3")
COMPOSE = ("github.com/compose-spec/compose-go/v2", "v2.10.0")
KEDA = ("github.com/kedacore/keda/v2", "v2.18.1")


def _go(*arguments: str, **environment: str) -> str:
    (go,) = require_tool("go")
    with tempfile.TemporaryDirectory() as folder:  # outside any module
        done = subprocess.run(
            [go, *arguments],
            cwd=folder,
            env={**os.environ, "GOFLAGS": "", **environment},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        unavailable(f"go {' '.join(arguments)}: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout


def module(path: str, version: str) -> Path:
    """The module's sources, read-only; downloaded and verified by Go at the first use."""
    return Path(json.loads(_go("mod", "download", "-json", f"{path}@{version}"))["Dir"])


def kustomize() -> Path:
    """The program, built once and kept in the user's cache."""
    path, version = KUSTOMIZE
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamer"
    program = root / f"kustomize-{version}"
    if not program.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            _go("install", f"{path}@{version}", GOBIN=folder)
            with contextlib.suppress(FileExistsError):
                (Path(folder) / "kustomize").rename(program)
    return program


def strict(schema: Any) -> Any:
    """The schema of a custom resource with unknown fields refused, as the API server does when it is asked to be strict."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found
