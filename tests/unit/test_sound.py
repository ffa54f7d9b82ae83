"""Sound from files: what samples mean in every width, other rates, and folders of utterances by speaker."""

from __future__ import annotations

import wave
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("jiwer")

from tooling import require_tool

from export.files.sound import as_steps, read_wav
from export.frontend import FrontEnd
from export.model import ModelConfig, build
from export.pairs import espeak
from export.pairs.data import BLANK, Alphabet, Pair, PairSplit
from export.pairs.learners import CtcLearner
from export.pairs.sections import PairsSection
from export.pairs.sound import delay, read_folder
from export.pairs.wordends import PHONEME, WORD, ends_of
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


def test_a_word_ends_with_the_pause_after_it_or_the_next_word() -> None:
    told = [
        (WORD, 1, 0, b""), (PHONEME, 1, 9, b"T"), (PHONEME, 1, 148, b"i:"), (PHONEME, 1, 222, b"_"),
        (WORD, 7, 268, b""), (PHONEME, 7, 278, b"n"),
        (WORD, 12, 592, b""), (PHONEME, 12, 602, b"z"), (PHONEME, 12, 871, b"_:"), (PHONEME, 12, 880, b"_"),
        (WORD, 0, 885, b""), (WORD, 12, 885, b""), (PHONEME, 12, 890, b"_"),
    ]  # fmt: skip
    assert ends_of(told) == [222, 592, 871]


@pytest.mark.parametrize("voice", ["en-us+f2", "en-gb-scotland+Gene"])
def test_after_a_words_end_it_is_quiet(voice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times are those of the very sound: between two ends something is said, after each there is a pause."""
    require_tool("espeak-ng")
    monkeypatch.setattr(espeak, "noisy", lambda x, rng: x)
    said = [espeak.speak("seven two nine", voice, 8_000, np.random.default_rng(3), timed=True) for _ in range(2)]
    (x, ends_s), again = said
    assert (again[0].tolist(), again[1]) == (x.tolist(), ends_s), "what was said before does not matter"
    assert len(ends_s) == 3
    energy = np.convolve(x**2, np.ones(80) / 80, "same")
    for before, end in pairwise((0.0, *ends_s)):
        loud = energy[int(8_000 * before) : int(8_000 * end)].max()
        assert energy[int(8_000 * end) + 40] < 0.02 * loud
    assert x[int(8_000 * (ends_s[-1] + 0.05)) :].max() < 0.02 * x.max(), "nothing is said after the last"


def test_words_that_no_time_is_told_of_are_an_error() -> None:
    require_tool("espeak-ng")
    with pytest.raises(ConfigurationError, match=r"cannot be told: .* tells 2 words of 'one ! two'"):
        espeak.word_ends("one ! two", "en-us", 150, 50, 0)


@pytest.mark.parametrize(("directions", "waits"), [(1, [0.3 - 0.25, 0.6 - 0.35]), (2, [0.8 - 0.25, 0.8 - 0.35])])
def test_the_delay_is_from_the_words_end_to_the_record_that_tells_it(directions: int, waits: list[float]) -> None:
    """Eight steps of a tenth of a second; what is heard wrong (six for nine) has no delay."""
    model = build(ModelConfig(4, 4, outputs=4, kind="rnn", directions=directions, activation="softmax"))
    learner = CtcLearner(model)
    likeliest = np.array([[0, 0, 1, 3, 0, 2, 0, 0]])
    fixed: Any = SimpleNamespace(learner=learner, alphabet=Alphabet((), (BLANK, "one", "two", "six")))
    learner.likeliest = lambda x, lengths: likeliest  # type: ignore[method-assign]
    x = np.zeros((8, 100), np.float32)
    known = Pair(x, (("one", "nine", "two"),), (0.25, 0.3, 0.35))
    nobody = Pair(x, (("one", "two"),))
    split = PairSplit([], [], [nobody, known], "words", None, (), packed=True)
    assert delay(fixed, split, 1_000)["delay_s"] == pytest.approx(np.mean(waits), abs=1e-3)
    assert delay(fixed, PairSplit([], [], [nobody], "words", None, ()), 1_000) == {}
