"""What is shipped: the wheel holds both packages with their data, the image's requirements are pinned and complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from streamer import __version__
from streamer.errors import install_hint
from streamer.tools.demo import MODEL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture
def wheel(wheel_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


class Installed:
    """An environment of its own, used from an empty folder; what it depends on is this environment's."""

    def __init__(self, folder: Path, *what: str | Path) -> None:
        self.bin, self.empty = folder / "venv" / "bin", folder / "empty"
        self.empty.mkdir()
        venv.create(folder / "venv", symlinks=True)
        install = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet", "--no-deps"]
        subprocess.run([*install, *what], check=True)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # a line of a .pth file adds the folder alone: an editable `streamer` in it stays unseen
        (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        command = [self.bin / words[0], *words[1:]]
        return subprocess.run(command, cwd=self.empty, env=own, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def installed(wheel_file: Path, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel_file)


def test_wheel_holds_both_packages_with_their_data_and_nothing_else(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        str(Path(installed_as, path.relative_to(ROOT / package)))
        for package, installed_as in (("streamer", "streamer"), ("export", "streamer_export"))
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ROOT / "streamer" / "native" not in path.parents
    }
    assert shipped == sources


def test_an_installed_wheel_is_the_command_and_two_packages_that_collide_with_none(installed: Installed) -> None:
    done = installed.run("streamer", "--version")
    assert (done.returncode, done.stdout) == (0, f"streamer {__version__}\n"), done.stderr
    done = installed.run("python", "-c", "import streamer, streamer_export; print(streamer.__file__)")
    assert str(installed.bin.parent) in done.stdout, "the checkout's, not the wheel's"
    done = installed.run("python", "-c", "import export")
    assert "No module named 'export'" in done.stderr
    model = "streamer.tools.demo.MODEL"
    script = (
        f"import streamer.tools.demo, streamer.tools.inspect as i; print(i.inspect({model}, measure=False)['sha256'])"
    )
    done = installed.run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(MODEL.read_bytes()).hexdigest()


def test_the_installed_export_goes_by_its_own_name(installed: Installed) -> None:
    done = installed.run("python", "-m", "streamer_export", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: python -m streamer_export COMMAND" in done.stdout
    commands = re.findall(r"^  (\w+) ", done.stdout, re.M)
    assert len(commands) == 7
    done = installed.run("python", "-m", "streamer_export", "trian")
    assert (done.returncode, done.stderr) == (2, "error: there is no command 'trian': did you mean train?\n")


@pytest.mark.torch
def test_each_command_of_the_installed_export_loads(installed: Installed) -> None:
    script = """
import contextlib
from streamer_export.__main__ import COMMANDS, main
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
"""
    done = installed.run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    used = re.findall(r"^usage: python -m streamer_export (\w+)", done.stdout, re.M)
    assert set(used) == {"train", "export", "verify", "compare", "gradients", "recipe", "card"}
    assert "python -m export" not in done.stdout


def test_an_editable_installation_has_the_checkout_as_it_is(tmp_path: Path) -> None:
    editable = Installed(tmp_path, "--editable", ROOT)
    done = editable.run("python", "-c", "import export, streamer; print(export.__file__, streamer.__file__)")
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("export", "streamer")], done.stderr
    assert editable.run("streamer", "--version").stdout == f"streamer {__version__}\n"
    assert "No module named" in editable.run("python", "-c", "import streamer_export").stderr, "no copy that grows old"


def test_advice_installs_from_the_checkout_or_the_wheel_and_never_a_strangers_package(wheel_file: Path) -> None:
    """The name `streamer` on the public index is another project's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras:
        assert f"pip install '.[{extra}]'" in install_hint(extra)
        assert f"pip install '{wheel_file.name}[{extra}]'" in install_hint(extra)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    strangers = re.compile(r"install (-\S+ )*['\"]?streamer(\[|['\" ]|$)", re.M)
    for name in filter(None, listed.stdout.split("\0")):
        with contextlib.suppress(UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            assert not strangers.search((ROOT / name).read_text()), name


def test_wheel_keeps_torch_in_an_extra_and_installs_the_command(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    required = re.findall(r"^Requires-Dist: ([A-Za-z0-9_-]+)[^;\n]*(;.*)?$", wheel.read(metadata).decode(), re.M)
    always = {name for name, condition in required if not condition}
    assert {"aiokafka", "onnxruntime"} <= always
    assert not always & {"torch", "onnx", "onnxscript", "confluent-kafka"}
    (scripts,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "streamer = streamer.__main__:main" in wheel.read(scripts).decode()
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
    assert {re.split(r"[<>=[]", requirement)[0] for requirement in wanted} <= set(pinned())
    assert {re.split(r"[<>=]", each)[0] for each in document["build-system"]["requires"]} <= set(
        pinned("requirements-build.txt")
    )
    assert not {"torch", "onnx", "triton"} & set(pinned())


def test_onnx_runtime_is_told_to_report_nothing_before_it_is_loaded():
    script = "import os, sys, streamer; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
