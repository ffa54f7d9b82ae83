"""The native decoder in tests: where it is not installed, tests of it skip and say why; with cargo in CI they fail."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import pytest
from tooling import in_ci

from streamer.records.formats import native

INSTALLED = importlib.util.find_spec(native.MODULE) is not None
DECODERS = ["python", "native"] if INSTALLED else ["python"]
"""Settings of ``input.decoder`` that this machine can have."""
_WHY = f"{native.WHEEL} is not installed: make native (needs cargo)"


def require_native() -> Any:
    """The module; skips without it."""
    if INSTALLED:
        return importlib.import_module(native.MODULE)
    if in_ci() and shutil.which("cargo"):
        pytest.fail(f"{_WHY} (CI=true and cargo is here: not skipped)", pytrace=False)
    pytest.skip(_WHY, allow_module_level=True)
