"""A model over closed windows: the calls over those that closed."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from streamer.core import F32, ClosedWindow, ModelCall, Reject, Spelled, WindowAnswers
from streamer.emission.ctc import spelled
from streamer.engine.lane import Lane
from streamer.engine.scheduler import plan_windows
from streamer.engine.windowing import Closing, OpenWindows
from streamer.errors import ModelRunError
from streamer.modelfile.model import Model
from streamer.modelfile.past import Past
from streamer.records.keys import Keys
from streamer.records.passing import without_passed
from streamer.records.unusable import refused_window
from streamer.windows import EachRecord, WindowRule, Windows

Verdict = list[F32] | str
"""The outputs of a window, one per output of the contract; or why the model does not take it."""
Settled = tuple[WindowAnswers, list[Reject], list[tuple[str, F32]]]
"""Answers, refusals, scores"""


class WindowLane(Lane):
    """Zero state, nothing is kept beyond a window."""

    def __init__(self, name: str, model: Model, rule: WindowRule, keys: Keys, past: Past | None = None) -> None:
        """``keys``: what the keys of the input are; dead letters have the same. ``past``: of features that records do not
        have; it begins with the first event of each window."""
        super().__init__(name, model)
        self._past = past
        self.rule, self.keys = rule, keys

    def opened(
        self, watermark: int, *, replaying: bool, through: dict[bytes, int], idle: Sequence[tuple[int, int]], since: int
    ) -> OpenWindows:
        """The windows of a partition that is taken over at its replay point."""
        contract, multiple = self.model.contract, self.model.length_multiple
        windows: Windows | EachRecord
        if self.rule.kind == "record":
            windows = EachRecord(self.rule, length_multiple=multiple, watermark=watermark, replaying=replaying)
        else:
            windows = Windows(
                self.rule,
                contract.features,
                dtype=contract.input.dtype,
                several=contract.many_steps,
                length_multiple=multiple,
                watermark=watermark,
                replaying=replaying,
            )
        return OpenWindows(windows, through, idle, since)

    def run(
        self, closings: Sequence[Closing], calls: list[ModelCall], *, max_rows: int, max_cells: int
    ) -> Generator[None, None, list[Verdict]]:
        """One model call per iteration, over windows of like length. Returns a verdict per closing, in their order."""
        verdicts: list[Verdict] = [""] * len(closings)
        lengths = [len(closing.window.x) for closing in closings]
        for chosen in plan_windows(lengths, max_rows=max_rows, max_cells=max_cells, ragged=self.model.ragged):
            index = chosen.tolist()
            found = self._judge([closings[each].window for each in index], calls)
            for each, verdict in zip(index, found, strict=True):
                verdicts[each] = verdict
            yield
        return verdicts

    def _judge(self, windows: list[ClosedWindow], calls: list[ModelCall]) -> list[Verdict]:
        """A call that fails is halved until the window is found."""
        outputs = self.model.contract.outputs
        lengths = np.array([len(window.x) for window in windows], np.int32)
        x = np.zeros((len(windows), int(lengths.max()), self.model.contract.features), windows[0].x.dtype)
        for row, window in zip(x, windows, strict=True):
            row[: len(window.x)] = window.x if self._past is None else self._past.whole(window.x, window.times_ms)
        try:
            results, _ = self.model.run(x, lengths, self.model.initial_states(len(windows)))
            parts = [
                [
                    result[at, : len(window.x)] if output.per == "event" else result[at]
                    for result, output in zip(results, outputs, strict=True)
                ]
                for at, window in enumerate(windows)
            ]
            for each in parts:
                for part, output in zip(each, outputs, strict=True):
                    if not np.isfinite(part).all():
                        raise ModelRunError(f"output {output.name!r} is not finite")
        except ModelRunError as error:
            if len(windows) == 1:
                return [str(error)]
            half = len(windows) // 2
            return self._judge(windows[:half], calls) + self._judge(windows[half:], calls)
        calls.append((len(windows), x.shape[1], int(lengths.sum())))
        return list(parts)

    def settle(self, partition: int, closings: Sequence[Closing], verdicts: Sequence[Verdict]) -> Settled:
        """Answers and refusals of one partition's windows, in their order."""
        good = [(closing, y) for closing, y in zip(closings, verdicts, strict=True) if not isinstance(y, str)]
        answers = WindowAnswers(
            partition=partition,
            model=self.name,
            keys=[closing.window.stream for closing, _ in good],
            timestamps_ms=[closing.timestamp_ms for closing, _ in good],
            sources=[closing.source for closing, _ in good],
            headers={row: closing.headers for row, (closing, _) in enumerate(good) if closing.headers},
            windows=[closing.window for closing, _ in good],
            y=[y for _, y in good],
            spelled=self._spelled([y for _, y in good]),
        )
        scores = [score for _, y in good for score in self.scores(y)]
        refused = zip(closings, verdicts, strict=True)
        return answers, [self._refusal(partition, each, why) for each, why in refused if isinstance(why, str)], scores

    def _spelled(self, answers: Sequence[list[F32]]) -> list[Spelled] | None:
        """What the windows of a model that emits spell."""
        outputs = self.model.contract.outputs
        at = self.model.contract.emitting
        emit = None if at is None else outputs[at].emit
        if at is None or emit is None:
            return None
        return [spelled(emit, y[at].reshape(len(y[at]), -1)) for y in answers]

    def _refusal(self, partition: int, closing: Closing, why: str) -> Reject:
        return refused_window(
            partition,
            self.name,
            closing.window,
            why,
            key=self.keys.raw(closing.window.stream),
            source=closing.source,
            headers=without_passed(closing.headers),
            timestamp_ms=closing.timestamp_ms,
        )
