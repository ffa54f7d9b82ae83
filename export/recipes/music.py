"""Music: polyphonic, one-to-many. Every event is the set of notes that sound; the model gives each note's probability.

Data: chord progressions of a small Markov chain in a random key, held for some beats, with a bass and a melody.
"""

from __future__ import annotations

import numpy as np

from ..data import Split, sequences
from ..generate import rollout, sampled_set
from ..model import SequenceModel
from ..train import ModelSection, TrainSection
from . import Recipe, split

NOTES = 36
FEATURES = tuple(f"note-{i}" for i in range(NOTES))
CHORDS = {"I": (0, 4, 7), "ii": (2, 5, 9), "IV": (5, 9, 12), "V": (7, 11, 14), "vi": (9, 12, 16)}
NEXT = {"I": ("IV", "V", "vi"), "ii": ("V",), "IV": ("I", "V", "ii"), "V": ("I", "vi"), "vi": ("ii", "IV")}
BEATS = 4


def song(rng: np.random.Generator, steps: int) -> np.ndarray:
    """[steps, NOTES] of 0 and 1: a chord for four beats, its bass on the first and third, an arpeggio above."""
    key, chord = int(rng.integers(5)), "I"
    x = np.zeros((steps, NOTES), np.float32)
    for step in range(steps):
        beat = step % BEATS
        if step and beat == 0:
            chord = str(rng.choice(NEXT[chord]))
        notes = [key + note for note in CHORDS[chord]]
        x[step, notes] = 1
        x[step, notes[beat % 3] + 12] = 1  # the melody climbs the chord an octave above
    return x


def make(quick: bool) -> Split:
    rng = np.random.default_rng(15)
    return split(sequences(FEATURES, [song(rng, 64) for _ in range(150 if quick else 600)]))


def generate(model: SequenceModel, steps: int = 16) -> str:
    """Sampled from silence; one line per step, the notes that sound."""
    sets = rollout(model, np.zeros((1, model.features)), steps, sampled_set(), lambda notes: notes)
    return "\n".join(" ".join(str(int(note)) for note in notes.nonzero()[:, 0]) for notes in sets)


RECIPE = Recipe(
    summary="chords and melody, a set of notes per step (causal, polyphonic, one-to-many)",
    task="next_set",
    make=make,
    model=ModelSection(hidden=96, kind="gru"),
    training=TrainSection(epochs=25, rows=32, steps=64, learning_rate=5e-3, schedule="cosine"),
    quick_model=ModelSection(hidden=64, kind="gru"),
    quick_training=TrainSection(epochs=40, rows=16, steps=64, learning_rate=1e-2, schedule="cosine"),
    metric="loss",
    limit=1.5,
    quick_limit=2.0,
    baseline="baseline_loss",
    baseline_name="nats per step of the notes' marginal rates",
    feedback={"output": "y", "mode": "sample", "encoding": "value"},
    show=lambda model, data: generate(model),
)
