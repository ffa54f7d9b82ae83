"""NPZ: ``x`` [N, F] beside columns [N] by name, or columns only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.errors import ConfigurationError

from .table import FileOptions, Table, refuse_doubles


def read(path: Path, options: FileOptions) -> Table:
    """``features`` [F] names the columns of ``x`` (default x0, x1, ...); times may be datetime64 of any unit."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise ConfigurationError(f"{path}: not an NPZ file of plain arrays: {error}") from error
    time = options.time if options.time in arrays else "time_ms"
    if options.stream not in arrays or time not in arrays:
        there = ", ".join(arrays)
        raise ConfigurationError(f"{path}: needs arrays {options.stream}, time_ms and x, there are {there}")
    x = arrays.pop("x", None)
    names = [str(name) for name in arrays.pop("features", np.arange(0))]
    rows = len(arrays[options.stream])
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
    return Table(str(path), columns, time_column=time)
