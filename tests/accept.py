"""``python tests/accept.py [PART ...]``: the long proofs, part by part, one line each at the end. Without a part: all of them.

Several parts run three at a time (on two cores: chaos mostly waits), those that measure speed by themselves and last.
``--list`` tells the parts. Everything else is handed on to pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """What belongs together. ``everything``: also what is not marked as a long proof, with more examples. ``alone``: what
    measures speed there, so nothing runs beside it; else what does not. ``figures``: what was measured is shown."""

    text: str
    paths: tuple[str, ...]
    everything: bool = False
    alone: bool = False
    figures: bool = False
    environment: dict[str, str] = field(default_factory=dict)


# The longest first: what is left at the end is then short.
PARTS = {
    "training": Part("trainings and comparisons of the learning side", ("tests/unit", "tests/contract")),
    "chaos": Part("kills, storms, broker outages, a crash at each step, on real Kafka", ("tests/chaos",)),
    "simulation": Part("seeded schedules over a simulated cluster, 30 minutes", ("tests/simulation",)),
    "served": Part("real data: trained in full, then served, on real Kafka", ("tests/integration",), figures=True),
    "robustness": Part("ten million inputs for every parser of foreign bytes", ("tests/robustness",)),
    "properties": Part(
        "invariants over random schedules, with many more examples",
        ("tests/property",),
        everything=True,
        environment={"HYPOTHESIS_PROFILE": "accept"},
    ),
    "kafka": Part(
        "gates of the benchmark, generation at load, live sound, queries, windows, on real Kafka",
        ("tests/integration",),
        alone=True,
        figures=True,
    ),
    "deploy": Part("overload and recovery of a deployment", ("tests/deploy",), alone=True, figures=True),
}


def run(name: str, arguments: list[str]) -> tuple[str, bool]:
    """The line that a part ends with, and whether it is good."""
    part, began = PARTS[name], time.monotonic()
    print(f"accept: {name}: {part.text}", flush=True)
    marks = "" if part.everything else "accept and alone" if part.alone else "accept and not alone"
    # a dump of all stacks, which tells where a short test hangs, can crash a training that is at work
    command = [sys.executable, "-m", "pytest", "-m", marks, "-o", "faulthandler_timeout=3600", *part.paths, *arguments]
    command += ["-s"] if part.figures else []
    threads = {} if part.alone else {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **threads, **part.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    last = ""
    for line in child.stdout:
        print(f"{name}: {line}", end="", flush=True)
        last = line if line.strip() else last
    code = child.wait()
    told = re.sub(r"^=+ | =+$", "", last.strip())
    minutes = (time.monotonic() - began) / 60
    good = code == 0
    return f"{'passed' if good else 'FAILED'}  {name:<12} {minutes:6.1f} min  {told}", good


def run_all(names: Iterable[str], arguments: list[str]) -> Iterator[tuple[str, bool]]:
    """What ``run`` gives for each: first those that may have company, then the others."""
    names = list(names)
    with ThreadPoolExecutor(3) as pool:
        yield from pool.map(lambda name: run(name, arguments), [name for name in names if not PARTS[name].alone])
    yield from (run(name, arguments) for name in names if PARTS[name].alone)


def main(arguments: list[str]) -> int:
    if "--list" in arguments:
        for name, part in PARTS.items():
            print(f"  {name:<12} {part.text}")
        return 0
    names = [argument for argument in arguments if argument in PARTS]
    rest = [argument for argument in arguments if argument not in PARTS]
    if unknown := [argument for argument in rest if not argument.startswith("-") and not names and len(rest) == 1]:
        print(f"accept: there is no part {unknown[0]!r}; one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    found = list(run_all(names or PARTS, rest))
    print()
    for line, _ in found:
        print(line)
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
