"""NPZ: ``x`` [N, F] beside columns [N] by name, or columns only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

from .cells import decode
from .table import FileOptions, Table, refuse_doubles

_CELLS = "biufUSM"
"""Kinds of arrays whose values are cells."""


def read(path: Path, options: FileOptions) -> Table:
    """``features`` [F] names the columns of ``x`` (default x0, x1, ...); times may be datetime64 of any unit."""
    arrays = _arrays(path)
    time = options.time if options.time in arrays else "time_ms"
    if options.stream not in arrays or time not in arrays:
        there = ", ".join(arrays)
        raise ConfigurationError(f"{path}: needs arrays {options.stream}, time_ms and x, there are {there}")
    x = arrays.pop("x", None)
    headings = Table(str(path), {"features": np.atleast_1d(arrays.pop("features", np.arange(0)))})
    decode(headings, ("features",))
    names = [str(name) for name in headings.columns["features"]]
    rows = arrays[options.stream].size
    own = (options.stream, time, options.label)
    columns: dict[str, Any] = {name: arrays[name] for name in arrays if name in own or x is None}
    if x is not None:
        if x.ndim != 2:
            raise ConfigurationError(f"{path}: x must be [N, F], it is {list(x.shape)}")
        names = names or [f"x{i}" for i in range(x.shape[1])]
        if len(names) != x.shape[1]:
            raise ConfigurationError(f"{path}: {len(names)} feature names for {x.shape[1]} features")
        refuse_doubles([*columns, *names], str(path))
        columns |= {name: x[:, i] for i, name in enumerate(names)}
    for name, column in columns.items():
        if column.ndim != 1 or len(column) != rows:
            raise ConfigurationError(
                f"{path}: array {name!r} is {list(column.shape)}, but {options.stream!r} has {rows} rows:"
                " x must be [N, F], and all other columns [N]"
            )
        if column.dtype.kind not in _CELLS:
            raise ConfigurationError(
                f"{path}: array {name!r} is of type {column.dtype}: columns are numbers, truths, texts or datetime64"
            )
    return Table(str(path), columns, time_column=time)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array only: write it by numpy.savez, with a name for each")
        with archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # what a damaged file provokes depends on where it is damaged
        raise ConfigurationError(f"{path}: not an NPZ file of plain arrays: {error}") from error
