"""Runs a Dockerfile's own instructions without an engine: in a mount namespace, on overlays over this machine's root.

What an engine would take from a registry, the base image, is this machine with its Python at /usr/local, where the
official image has it, and its Rust. Everything else is read from the Dockerfile: an instruction that is not understood is an error.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tooling import require_tool, unavailable


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest of the line), continued lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


@dataclass
class Image:
    """A stage: its root folder (in the namespace) and what it declares."""

    root: str
    base: str = ""
    cwd: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)


class Namespace:
    """A mount namespace of our own; what is mounted in it is gone when it ends."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._holder = holder

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--", *words]

    def run(self, *words: str, timeout_s: float = 600) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def stage(self, name: str) -> str:
        """A new root over this machine's, with its Python at /usr/local; the path of it."""
        layers = f"/run/streamer-image/{name}"
        root = f"{layers}/root"
        self.run("mkdir", "-p", f"{layers}/upper", f"{layers}/work", root)
        options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
        self.run("mount", "-t", "overlay", "overlay", "-o", options, root)
        self.run("mount", "--bind", sys.base_prefix, f"{root}/usr/local")
        self.run("mount", "-o", "remount,bind,ro", f"{root}/usr/local")
        self.run("mount", "--rbind", "/dev", f"{root}/dev")
        self.run("mount", "-t", "proc", "proc", f"{root}/proc")
        self.run("chroot", root, "ldconfig")
        return root


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Skips with the reason where this machine does not permit it."""
    require_tool("unshare", "nsenter", "setpriv", "chroot")
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin
    assert holder.stdout
    try:
        if holder.stdout.readline() != b"ready\n":
            # Not a missing program: a container without the right to mount cannot get it.
            unavailable(f"no mount namespace here: {holder.communicate()[1].decode().strip()}")
        space = Namespace(holder)
        try:
            space.run("mount", "-t", "tmpfs", "tmpfs", "/run")
            space.stage("probe")
        except AssertionError as error:
            unavailable(f"no overlay can be mounted here: {error}")
        yield space
    finally:
        if holder.poll() is None:
            holder.stdin.close()
            holder.wait(30)


def build(space: Namespace, dockerfile: Path, context: Path) -> Image:
    """The last stage. ``context``: what is sent to the engine, so without what .dockerignore leaves out."""
    stages: dict[str, Image] = {}
    arguments: dict[str, str] = {}
    image = Image("")
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            image = Image(space.stage(name or "final"), base)
            # What the official image of Python has beside the defaults of the system.
            image.environment["PATH"] = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
            if base.startswith("rust:"):  # this machine's, for what the image brings
                image.environment["PATH"] += f":{Path(require_tool('cargo')[0]).parent}"
            stages[name] = image
        elif word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = default
        elif word in ("ENV", "LABEL"):
            pairs = re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S+))', rest)
            known = {**image.environment, **arguments}
            values = {key: string.Template(quoted or bare).substitute(known) for key, quoted, bare in pairs}
            (image.environment if word == "ENV" else image.labels).update(values)
        elif word == "WORKDIR":
            image.cwd = rest
            space.run("mkdir", "-p", image.root + rest)
        elif word == "COPY":
            _copy(space, image, stages, context, rest)
        elif word == "RUN":
            line = f"export PATH={image.environment['PATH']}; cd {image.cwd}; {rest}"
            space.run("chroot", image.root, "/bin/sh", "-e", "-c", line)
        elif word == "USER":
            image.user = rest
        elif word == "EXPOSE":
            image.ports.append(int(rest))
        elif word == "HEALTHCHECK":
            image.health = json.loads(rest[rest.index("CMD ") + 4 :])
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        elif word == "CMD":
            image.command = json.loads(rest)
        else:
            raise AssertionError(f"{dockerfile}: {word} is not understood here")
    return image


def _copy(space: Namespace, image: Image, stages: dict[str, Image], context: Path, rest: str) -> None:
    *sources, target = rest.split()
    source_root = str(context) + "/"
    if sources[0].startswith("--from="):
        source_root = stages[sources.pop(0).removeprefix("--from=")].root
    target = image.root + str(Path(image.cwd) / target)
    space.run("mkdir", "-p", target if rest.endswith("./") else str(Path(target).parent))
    space.run("cp", "-a", "--no-preserve=ownership", *(source_root + source for source in sources), target)


def sent_context(root: Path, ignore: Path, target: Path) -> Path:
    """What .dockerignore lets through, when it is a list of exceptions to ``*``."""
    lines = [line for line in ignore.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    for line in lines[1:]:
        if line.startswith("!"):
            source, copy = root / line[1:], target / line[1:]
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "target"))
            else:
                shutil.copy(source, copy)
        else:
            assert line in ("**/__pycache__", "**/target")
    return target


def inside(space: Namespace, image: Image, words: Sequence[str], **environment: str) -> list[str]:
    """The command line that runs ``words`` as the image's user, without any capability, on its root."""
    uid, gid = image.user.split(":")
    values = {**image.environment, **environment}
    return space.command(
        "chroot", image.root, "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--bounding-set=-all",
        "--inh-caps=-all", "--no-new-privs", "env", "-i", *(f"{key}={value}" for key, value in values.items()), *words,
    )  # fmt: skip
