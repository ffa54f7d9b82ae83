"""Parsers of bytes that others write: whatever the bytes are, the outcome is an answer or a refusal, and each is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import fuzzing
import pytest

GUIDED_S = 20
"""Of each target, with atheris"""
INPUTS = {
    "json": 1_000_000,
    "json-named": 1_000_000,
    "msgpack": 500_000,
    "float32": 600_000,
    "user": 400_000,
    "avro": 300_000,
    "avro-flat": 300_000,
    "protobuf": 300_000,
    "json-schema": 400_000,
    "schemas": 100_000,
    "steps-json": 400_000,
    "steps-msgpack": 400_000,
    "steps-float32": 400_000,
    "texts": 300_000,
    "records": 600_000,
    "batches": 1_000_000,
    "requests": 600_000,
    "contracts": 400_000,
    "sidecars": 100_000,
    "settings": 100_000,
    "progress": 700_000,
    "streams": 700_000,
    "texts_of_keys": 300_000,
    "times": 300_000,
}
"""Of each target, by mutation alone"""


def test_every_target_has_its_share() -> None:
    assert INPUTS.keys() == fuzzing.TARGETS.keys()
    assert sum(INPUTS.values()) >= 10_000_000


@pytest.mark.parametrize("name", list(fuzzing.TARGETS))
def test_whatever_the_bytes_are(name: str) -> None:
    """The short form: seconds."""
    target, inputs = fuzzing.TARGETS[name](), 0
    for data in islice(fuzzing.blind(name, seed=1), 40 if name in fuzzing.TOGETHER else 800):
        inputs += target(data)
    assert inputs >= 800


def fuzz(how: str, name: str, amount: int, out: Path) -> int:
    """Inputs of one target in a process of its own. AssertionError with what it said, if it ended otherwise."""
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, how, name, str(amount), "1", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{how} {name}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return int(json.loads(out.read_text())["inputs"])


@pytest.mark.accept
def test_ten_million_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [("blind", name, amount) for name, amount in INPUTS.items()]
    jobs += [("guided", name, GUIDED_S) for name in INPUTS]
    counts = [fuzz(*job, tmp_path / f"{job[0]}-{job[1]}") for job in jobs]
    with capsys.disabled():
        for (how, name, _), count in zip(jobs, counts, strict=True):
            print(f"{how:7} {name:14} {count:>10,} inputs")
        print(f"{sum(counts):,} inputs, 0 crashes")
    assert sum(counts) >= 10_000_000
