"""Answers become bytes here: the core hands out numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamer.core import Answers, Epoch, GeneratedAnswers, Outgoing, StepAnswers, Transaction, WindowAnswers
from streamer.modelfile.model import Model
from streamer.records.encode import Encoder
from streamer.records.keys import Keys


class Sink:
    """Values of predictions, per model as its contract says."""

    def __init__(self, models: Iterable[tuple[str, Model]], keys: Keys) -> None:
        """``keys``: what the keys of the input are; answers have the same."""
        self._keys = keys
        self._encoders = {name: Encoder(model.contract, name, keys) for name, model in models}

    def encode(self, answers: Sequence[Answers]) -> list[Outgoing]:
        """One batch of records per batch of answers, in their order."""
        return [
            Outgoing(
                each.partition,
                self._keys.raws(each.keys),
                self._values(each),
                each.timestamps_ms,
                each.sources,
                each.headers,
                each.mode,
            )
            for each in answers
        ]

    def transaction(self, epoch: Epoch) -> Transaction:
        return Transaction(epoch.positions, self.encode(epoch.answers), epoch.rejects, epoch.changelog)

    def _values(self, answers: Answers) -> list[bytes]:
        encoder = self._encoders[answers.model]
        if isinstance(answers, StepAnswers):
            return encoder.steps(answers.keys, answers.times_ms, answers.y)
        if isinstance(answers, WindowAnswers):
            return [encoder.window(window, y) for window, y in zip(answers.windows, answers.y, strict=True)]
        assert isinstance(answers, GeneratedAnswers)
        return answers.values
