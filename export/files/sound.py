"""Sound from WAV files: one channel of whole numbers of 16 bits, at the rate that is asked for."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly  # type: ignore[import-untyped]

from streamer.errors import ConfigurationError

from ..data import F32


def read_wav(source: Path | bytes, rate_hz: int) -> F32:
    """[N] samples, channels averaged, resampled. ConfigurationError: no WAV, or one whose samples are compressed.

    What a program writes to a pipe has no lengths in its header: the samples then go to the end.
    """
    name = str(source) if isinstance(source, Path) else "the sound"
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error, RuntimeError) as error:
        raise ConfigurationError(f"{name} cannot be read as WAV ({error}): uncompressed PCM is wanted") from None
    values = _numbers(raw[: len(raw) - len(raw) % (width * channels)], width)
    mono = values.reshape(-1, channels).mean(axis=1)
    if rate != rate_hz and len(mono):
        common = int(np.gcd(rate, rate_hz))
        mono = resample_poly(mono, rate_hz // common, rate // common)
    whole: F32 = np.clip(np.round(mono), -32_768, 32_767).astype(np.float32)
    return whole


def _numbers(raw: bytes, width: int) -> np.ndarray:
    """Samples of 1 to 4 bytes in the range of 16 bits."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128.0) * 256.0
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 65_536.0
    return np.frombuffer(raw, f"<i{width}") / (1.0 if width == 2 else 65_536.0)


def as_steps(samples: F32, size: int) -> F32:
    """[T, size]; the last step is filled up with silence. No samples are no steps."""
    count = -(-len(samples) // size)
    steps: F32 = np.pad(samples, (0, count * size - len(samples))).reshape(count, size)
    return steps
