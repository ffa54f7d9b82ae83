"""Native code in tests: where it is not installed, tests of it skip and say why; with cargo in CI they fail."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from tooling import in_ci

from streamer.records.formats import native
from streamer.words import Decoder

_FOUND = native.Native.load(Decoder.AUTO)
INSTALLED = _FOUND.module is not None
DECODERS = ["python", "auto"] if INSTALLED else ["python"]
"""Settings of ``input.decoder`` with which this machine reads records in different ways. ``native`` refuses what native code
does not read."""
_WHY = f"{_FOUND.why_not}: make native (needs cargo)"
"""Not there, or of another protocol"""


def require_native() -> Any:
    """The module; skips without it."""
    if INSTALLED:
        return _FOUND.module
    if in_ci() and shutil.which("cargo"):
        pytest.fail(f"{_WHY} (CI=true and cargo is here: not skipped)", pytrace=False)
    pytest.skip(_WHY, allow_module_level=True)
