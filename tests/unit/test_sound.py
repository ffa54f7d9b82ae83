"""Sound from files: what samples mean in every width, other rates, and folders of utterances by speaker."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from export.files.sound import as_steps, read_wav
from export.frontend import FrontEnd
from export.pairs import espeak
from export.pairs.sections import PairsSection
from export.pairs.sound import read_folder
from streamer.errors import ConfigurationError

pytestmark = pytest.mark.torch

SECTION = PairsSection(source="file", target="words", target_units="words")


def write(path: Path, values: np.ndarray, *, width: int = 2, channels: int = 1, rate: int = 8_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(values).astype(np.int64)
    raw = {
        1: lambda: ((whole >> 8) + 128).astype(np.uint8).tobytes(),
        2: lambda: whole.astype("<i2").tobytes(),
        3: lambda: np.ascontiguousarray((whole << 8).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]).tobytes(),
        4: lambda: (whole << 16).astype("<i4").tobytes(),
    }[width]()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


@pytest.mark.parametrize(("width", "near"), [(1, 256), (2, 0), (3, 0), (4, 0)])
def test_samples_are_whole_numbers_of_16_bits(tmp_path: Path, width: int, near: int) -> None:
    values = np.array([0, 1, -1, 300, -300, 32_767, -32_768])
    found = read_wav(write(tmp_path / "a.wav", values, width=width), 8_000)
    assert found.dtype == np.float32
    assert np.abs(found - values).max() <= near


def test_channels_are_averaged_and_other_rates_brought_to_ours(tmp_path: Path) -> None:
    both = np.array([[100, 300], [-100, -300]])
    assert read_wav(write(tmp_path / "a.wav", both.ravel(), channels=2), 8_000).tolist() == [200, -200]
    at = np.arange(22_050) / 22_050
    tone = read_wav(write(tmp_path / "b.wav", 10_000 * np.sin(2 * np.pi * 440 * at), rate=22_050), 8_000)
    wanted = 10_000 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)
    assert len(tone) == 8_000
    assert np.abs(tone - wanted)[100:-100].max() < 60


def test_steps_are_filled_up_with_silence() -> None:
    assert as_steps(np.arange(1, 6, dtype=np.float32), 4).tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert as_steps(np.zeros(0, np.float32), 4).shape == (0, 4)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"ID3\x04" + bytes(100)])
def test_what_is_no_wav_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"a\.wav cannot be read as WAV .* PCM is wanted"):
        read_wav(tmp_path / "a.wav", 8_000)


def test_a_speaker_goes_to_one_part(tmp_path: Path) -> None:
    lines = ["file\twords"]
    for speaker in range(10):
        for number in range(3):
            write(tmp_path / f"v{speaker}" / f"{number}.wav", np.full(50, 100 * speaker))
            lines.append(f"v{speaker}/{number}{'.wav' * (number > 0)}\tone two")
    (tmp_path / "transcripts.tsv").write_text("\n".join(lines))
    front = FrontEnd()
    split = read_folder(tmp_path, SECTION, front, 20, share=0.2, seed=0, notes=[])
    parts = [{float(pair.source[0, 0]) for pair in part} for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set().union(*parts)) == 10
    assert [len(part) for part in (split.train, split.validation, split.test)] == [18, 6, 6]
    assert split.train[0].source.shape == (3, 20)
    assert split.train[0].targets == (("one", "two"),)
    assert split.steps == "many"


def test_a_folder_without_transcripts_is_said(tmp_path: Path) -> None:
    for folder, says in ((tmp_path, "has no transcripts"), (tmp_path / "none", "is no folder")):
        with pytest.raises(ConfigurationError, match=says):
            read_folder(folder, SECTION, FrontEnd(), 20, share=0.2, seed=0, notes=[])


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match="apt-get install espeak-ng"):
        espeak.voices()
