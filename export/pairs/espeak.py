"""Speech by espeak-ng, a program of Debian: as much of it as wanted, and what is said is known."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np

from streamer.errors import ConfigurationError

from ..data import F32
from ..files.sound import read_wav

_MARKS = {"en": "gmw/", "variant": "!v/"}
"""Folder of the voices that espeak-ng makes by itself, by what lists them."""


def espeak(*arguments: str) -> bytes:
    """What it writes to its output. ConfigurationError: it is not there."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise ConfigurationError("espeak-ng, which makes the speech, is not installed: apt-get install espeak-ng")
    return subprocess.run([program, *arguments], capture_output=True, check=True).stdout  # noqa: S603 - our own words


def voices() -> tuple[list[str], list[str]]:
    """(accents of English, speakers): any accent goes with any speaker."""
    found = []
    for kind, mark in _MARKS.items():
        rows = [line.split() for line in espeak(f"--voices={kind}").decode().splitlines()[1:]]
        found.append(sorted({row[1] if kind == "en" else row[4].removeprefix(mark) for row in rows if mark in row[4]}))
    return found[0], found[1]


def speak(text: str, voice: str, rate_hz: int, rng: np.random.Generator) -> F32:
    """[N] samples of 16 bits: speed, pitch and pauses, loudness and noise by chance."""
    speed, pitch, gap = int(rng.integers(130, 220)), int(rng.integers(25, 80)), int(rng.integers(0, 12))
    said = espeak("-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(gap), "--stdout", text)
    return noisy(read_wav(said, rate_hz), rate_hz, rng)


def noisy(x: F32, rate_hz: int, rng: np.random.Generator) -> F32:
    """With silence of 0.05 to 0.4 s before and after it, and noise 10 to 30 dB below it, more or less of it low."""
    x = np.pad(x, tuple(rng.integers(rate_hz // 20, 2 * rate_hz // 5, 2)))
    noise = rng.normal(size=len(x))
    noise += rng.uniform(0, 1) * np.convolve(noise, np.ones(16) / 4, "same")
    level = np.sqrt(np.mean(x**2)) * 10 ** (-rng.uniform(10, 30) / 20) / noise.std()
    loud = 10 ** (-rng.uniform(0, 18) / 20) * 30_000 / max(1.0, np.abs(x).max())
    whole: F32 = np.clip(np.round((x + level * noise) * loud), -32_768, 32_767).astype(np.float32)
    return whole
