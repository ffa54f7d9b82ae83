"""What is shipped: the wheel holds both packages with their data, the image's requirements are pinned and complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


def test_wheel_holds_both_packages_with_their_data_and_nothing_else(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(ROOT))
        for package in ("streamer", "export")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == sources


def test_wheel_keeps_torch_in_an_extra_and_installs_the_command(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    required = re.findall(r"^Requires-Dist: ([A-Za-z0-9_-]+)[^;\n]*(;.*)?$", wheel.read(metadata).decode(), re.M)
    always = {name for name, condition in required if not condition}
    assert {"aiokafka", "onnxruntime"} <= always
    assert not always & {"torch", "onnx", "onnxscript", "confluent-kafka"}
    (scripts,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "streamer = streamer.cli:main" in wheel.read(scripts).decode()
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def pinned(name: str = "requirements.txt") -> dict[str, int]:
    """Name -> number of hashes, of every requirement of the image."""
    text = (ROOT / "deploy" / name).read_text().replace("\\\n", " ")
    found: dict[str, int] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        match = re.match(r"([a-z0-9.-]+)==[^ ;]+( ;[^-]*)?((?: +--hash=sha256:[0-9a-f]{64})+)$", line)
        assert match, f"not pinned with hashes: {line[:80]}"
        found[match[1]] = match[3].count("--hash")
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_image_requirements_are_hashed_and_name_no_address(name):
    assert min(pinned(name).values()) >= 1
    text = (ROOT / "deploy" / name).read_text()
    assert "://" not in text
    assert "index-url" not in text


def test_image_requirements_hold_every_dependency_and_no_torch():
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, extras = document["project"], document["project"]["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["fast"], *extras["demo"]]
    assert {re.split(r"[<>=]", requirement)[0] for requirement in wanted} <= set(pinned())
    assert {re.split(r"[<>=]", each)[0] for each in document["build-system"]["requires"]} <= set(
        pinned("requirements-build.txt")
    )
    assert not {"torch", "onnx", "triton"} & set(pinned())


def test_onnx_runtime_is_told_to_report_nothing_before_it_is_loaded():
    script = "import os, sys, streamer; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
