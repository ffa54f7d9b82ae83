"""What a model file is, what it costs, and whether it keeps its promises: the report of ``streamer inspect``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.table import Table
from rich.text import Text

from streamer.modelfile.model import Model
from streamer.modelfile.past import Past

BATCH_SIZES = (1, 16, 64, 256)
_SECONDS_PER_SIZE = 0.15
_MIN_CALLS, _MAX_CALLS = 5, 2000


def inspect(path: str | Path, *, sha256: str | None = None, measure: bool = True) -> dict[str, Any]:
    """The report as plain values: contract, sha256, parameters, state_bytes_per_stream, past_bytes_per_stream (kept beside
    the state where records have fields with names, for features that depend on the past), microseconds_per_event by rows
    of a call (one event each; empty without ``measure``), probe {passed, findings}, and how calls are made.

    ModelError for a model that would be refused at start.
    """
    model = Model.load(path, sha256=sha256)
    contract = model.contract
    whole = contract.input.dtype.startswith("int")
    past = None if whole else Past.of(contract.feature_tables, contract.input.dtype)
    return {
        "path": str(path),
        "contract": msgspec.json.decode(contract.dump()),
        "sha256": model.sha256,
        "parameters": contract.parameters,
        "state_bytes_per_stream": model.state_bytes_per_stream,
        "past_bytes_per_stream": 0 if past is None else past.width,
        "microseconds_per_event": {str(rows): _cost(model, rows) for rows in BATCH_SIZES} if measure else {},
        "batched": model.batched,
        "rows_per_call": model.rows_per_call,
        "max_steps": model.max_steps,
        "ragged": model.ragged,
        "probe": {
            "passed": all(finding.passed for finding in model.findings),
            "findings": [
                {"name": finding.name, "passed": finding.passed, "detail": finding.detail} for finding in model.findings
            ],
        },
    }


def as_table(found: dict[str, Any]) -> Table:
    """The report for eyes: one line per fact, numbers to three digits."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, *lines in _lines(found):
        table.add_row(Text(name), Text("\n".join(lines)))
    return table


def _lines(found: dict[str, Any]) -> Iterator[list[str]]:
    """Name and lines of each fact."""
    for key, value in found.items():
        if key == "microseconds_per_event":
            yield from ([f"us per event, {rows} rows", _text(cost)] for rows, cost in value.items())
        elif key == "probe":
            for finding in value["findings"]:
                yield [("ok      " if finding["passed"] else "FAILED  ") + finding["name"], finding["detail"]]
        elif key == "contract":
            yield from _lines(value)
        elif isinstance(value, dict):
            yield [key, *(f"{name} {_text(each)}" for name, each in value.items())]
        else:
            yield [key, *map(_text, value if isinstance(value, list) else [value])]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None else str(value)


def _cost(model: Model, rows: int) -> float:
    """Median microseconds per event of a call with ``rows`` rows of the fewest steps that the model runs."""
    steps = model.length_multiple
    x = np.full((rows, steps, model.contract.features), 0.5, np.float32)
    lengths, states = np.full(rows, steps, np.int32), model.initial_states(rows)
    for _ in range(2):
        model.run(x, lengths, states)
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < _MIN_CALLS or (len(seconds) < _MAX_CALLS and time.perf_counter() - begin < _SECONDS_PER_SIZE):
        start = time.perf_counter()
        model.run(x, lengths, states)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds) / (rows * steps) * 1e6, 3)
