"""Speech by espeak-ng, a program of Debian: as much of it as wanted, and what is said is known, and when."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np

from streamer.errors import ConfigurationError

from ..data import F32
from ..files.sound import read_wav
from . import wordends

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


def speak(
    text: str, voice: str, rate_hz: int, rng: np.random.Generator, *, timed: bool = False
) -> tuple[F32, tuple[float, ...]]:
    """[N] samples of 16 bits: speed, pitch and pauses, loudness, silence around it and noise by chance.

    ``timed``: and when each word ends, in seconds; () else.
    """
    speed, pitch, gap = int(rng.integers(130, 220)), int(rng.integers(25, 80)), int(rng.integers(0, 12))
    said = espeak("-v", voice, "-s", str(speed), "-p", str(pitch), "-g", str(gap), "--stdout", text)
    x = read_wav(said, rate_hz)
    before, after = (int(each) for each in rng.integers(rate_hz // 20, 2 * rate_hz // 5, 2))
    ends = [before / rate_hz + end for end in word_ends(text, voice, speed, pitch, gap)] if timed else []
    return noisy(np.pad(x, (before, after)), rng), tuple(ends)


def noisy(x: F32, rng: np.random.Generator) -> F32:
    """With noise 10 to 30 dB below it, more or less of it low."""
    noise = rng.normal(size=len(x))
    noise += rng.uniform(0, 1) * np.convolve(noise, np.ones(16) / 4, "same")
    level = np.sqrt(np.mean(x**2)) * 10 ** (-rng.uniform(10, 30) / 20) / noise.std()
    loud = 10 ** (-rng.uniform(0, 18) / 20) * 30_000 / max(1.0, np.abs(x).max())
    whole: F32 = np.clip(np.round((x + level * noise) * loud), -32_768, 32_767).astype(np.float32)
    return whole


def word_ends(text: str, voice: str, speed: int, pitch: int, gap: int) -> list[float]:
    """Seconds from the first sample to the end of each word of ``text``, the pause after it left out.

    ConfigurationError: the program's library is not there, or does not tell every word.
    """
    numbers = [str(speed), str(pitch), str(gap)]
    command = [sys.executable, "-I", "-S", wordends.__file__, text, voice, *numbers]
    found = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own words
    if found.returncode:
        told = found.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise ConfigurationError(f"when a word is said cannot be told: {told[-1]}")
    return [int(ms) / 1_000 for ms in found.stdout.split()]
