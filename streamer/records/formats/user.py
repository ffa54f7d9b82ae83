"""The user's own ``decode(values: Sequence[bytes]) -> (x[N, F], times[N] | None, {row: reason})``.

``times``: in ``input.time_unit``, None or NaN where a record does not say; ``{row: reason}``: records that are no events.
It is a stranger's code. What it returns is copied and checked; a call that raises, or that returns what cannot be, is
halved until the record is found, so that its neighbours go on. A record means what the decoder says of it: one that
looks at a record's neighbours answers differently after a restart.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamer.errors import ConfigurationError
from streamer.records.exact import Exact
from streamer.records.formats.base import Columns, Row
from streamer.records.unusable import Unusable, plain, unforeseen
from streamer.words import Reason


class User:
    """A decoder MODULE:FUNCTION. ConfigurationError: there is none of that name, or its module cannot be imported."""

    def __init__(self, target: str, features: Sequence[str], exact: Exact) -> None:
        module, _, name = target.partition(":")
        if not (module and name):
            raise ConfigurationError(
                f"input.format = {target!r} is not a format: json, json-named, float32, or an importable MODULE:FUNCTION."
            )
        try:
            self._decode: Callable[[Sequence[bytes]], Any] = getattr(importlib.import_module(module), name)
        except Exception as error:  # importing runs a stranger's module
            raise ConfigurationError(
                f"input.format = {target!r}: {plain(error)}. Name an importable MODULE:FUNCTION, or json, json-named, float32."
            ) from error
        self._names, self._exact = tuple(features), exact

    def row(self, value: bytes) -> Row:
        found = self._call([value])
        if isinstance(found, BaseException):
            raise unforeseen(found)
        x, times, bad = found
        if bad:
            raise bad[0]
        numbers = [self._exact.number(each, name) for each, name in zip(x[0].tolist(), self._names, strict=True)]
        return numbers, None if times is None else times[0]

    def columns(self, values: Sequence[bytes]) -> Columns:
        found = self._call(values)
        if not isinstance(found, BaseException):
            x, times, bad = found
            column, unsure = self._exact.column(x)
            return Columns(column, times, [row for row in unsure if row not in bad], bad)
        count = len(values)
        if count == 1:
            nothing = np.zeros((1, len(self._names)), self._exact.dtype)
            return Columns(nothing, None, [], {0: unforeseen(found)})
        half = count // 2
        one, two = self.columns(values[:half]), self.columns(values[half:])
        times = None
        if one.times is not None or two.times is not None:
            times = [*(one.times or [None] * half), *(two.times or [None] * (count - half))]
        return Columns(
            np.concatenate((one.x, two.x)),
            times,
            [*one.doubtful, *(row + half for row in two.doubtful)],
            one.bad | {row + half: why for row, why in two.bad.items()},
        )

    def _call(
        self, values: Sequence[bytes]
    ) -> tuple[np.ndarray[Any, Any], list[object] | None, dict[int, Unusable]] | BaseException:
        """What the decoder says, copied and found possible; or what was wrong."""
        try:
            x, times, bad = self._decode(list(values))
            return self._numbers(x, len(values)), _times(times, len(values)), _rejects(bad, len(values))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's code may even end the interpreter: it rejects a record instead
            return error

    def _numbers(self, x: Any, count: int) -> np.ndarray[Any, Any]:
        numbers = np.array(x)  # a copy: the decoder may use its memory again
        if numbers.dtype.kind not in "fiu" or numbers.dtype.itemsize > 8:
            raise TypeError(f"x is of dtype {numbers.dtype}, not of numbers")
        if numbers.shape[:1] != (count,) or numbers.size != count * len(self._names):
            raise ValueError(f"x has shape {numbers.shape}, not ({count}, {len(self._names)})")
        return numbers.reshape(count, len(self._names))


def _times(times: Any, count: int) -> list[object] | None:
    if times is None:
        return None
    listed = times.tolist() if isinstance(times, np.ndarray) else list(times)
    if not isinstance(listed, list) or len(listed) != count:
        raise ValueError(f"times are not {count}, one for each value")
    told = [each.item() if isinstance(each, np.generic) else each for each in listed]
    return [None if isinstance(each, float) and each != each else each for each in told]  # noqa: PLR0124 (NaN)


def _rejects(bad: Any, count: int) -> dict[int, Unusable]:
    found: dict[int, Unusable] = {}
    for row, reason in dict(bad or {}).items():
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < count:
            raise ValueError(f"it rejects row {plain(row)[:40]}, but was given {count} values")
        found[int(row)] = Unusable(Reason.UNDECODABLE, plain(reason))
    return found
