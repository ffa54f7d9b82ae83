"""Programs that tests need beside Python: without them a test skips and says why, in CI it fails."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

DEBIAN_PACKAGES = {
    "java": "openjdk-17-jre-headless",
    "mvn": "maven",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "chromium": "chromium",
    "cargo": "cargo",
    "go": "golang-go",
    "chromedriver": "chromium-driver",
}


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def unavailable(reason: str) -> NoReturn:
    """Skip, or fail where CI=true: there everything that can be installed must be."""
    if in_ci():
        pytest.fail(f"{reason} (CI=true: not skipped)", pytrace=False)
    pytest.skip(reason)


def require_tool(*names: str) -> list[str]:
    """Paths of the programs; skips or fails when one is missing, with the Debian package that has it."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        packages = sorted({DEBIAN_PACKAGES.get(name, name) for name in missing})
        unavailable(f"{', '.join(missing)} not found (Debian: apt-get install {' '.join(packages)})")
    return [path for path in map(shutil.which, names) if path]
