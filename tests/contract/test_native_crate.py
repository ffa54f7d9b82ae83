"""The crate of native columns: its own tests, its lints, and that nothing but crates.io is named in its lock."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from streamer import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
CRATE = ROOT / "streamer" / "native"


def cargo(*words: str) -> subprocess.CompletedProcess[str]:
    """Skips without cargo: the crate is optional, also in CI."""
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "build" / "native"))
    try:
        return subprocess.run(
            ["cargo", *words], cwd=CRATE, env={**os.environ, "CARGO_TARGET_DIR": target}, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("cargo is not here: the crate is not built")


def test_every_crate_is_locked_and_from_crates_io() -> None:
    text = (CRATE / "Cargo.lock").read_text()
    sources = set(re.findall(r'^source = "(.*)"$', text, re.M))
    assert sources == {"registry+https://github.com/rust-lang/crates.io-index"}
    assert set(re.findall(r"https?://[^/\s\"]+", text)) == {"https://github.com"}


def test_its_version_is_the_service_s() -> None:
    assert tomllib.loads((CRATE / "Cargo.toml").read_text())["package"]["version"] == __version__


@pytest.mark.slow
def test_its_own_tests_pass() -> None:
    """Among them a million hostile values, compared with another parser."""
    done = cargo("test", "--locked")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.findall(r"what_is_sure_is_what_another_parser_reads \.\.\. ok", done.stdout)


@pytest.mark.slow
def test_it_is_formatted() -> None:
    done = cargo("fmt", "--check")
    if "no such command" in done.stderr or "is not installed" in done.stderr:
        pytest.skip("rustfmt is not here")
    assert (done.returncode, done.stdout) == (0, "")
