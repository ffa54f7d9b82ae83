"""Parquet, by pyarrow (an extra: no other part needs it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamer.errors import ConfigurationError, install_hint

from .table import FileOptions, Table, leave_out_indexes, refuse_doubles


def read(path: Path, options: FileOptions) -> Table:
    """All columns; the fields of structs become columns by their path. Nulls are missing."""
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{path}: Parquet needs pyarrow: {install_hint('parquet')}") from error
    try:
        refuse_doubles(pyarrow.parquet.read_schema(path).names, str(path))
        found = pyarrow.parquet.read_table(path)
        found.validate(full=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error
    while any(pyarrow.types.is_struct(field.type) for field in found.schema):
        found = found.flatten()
    refuse_doubles(list(found.column_names), str(path))
    types = pyarrow.types
    columns: dict[str, Any] = {}
    for field, column in zip(found.schema, found.columns, strict=True):
        kind = field.type
        if types.is_timestamp(kind) or types.is_date(kind):
            # datetime64 of the file's own unit; what has a zone is UTC inside. Nulls are NaT.
            columns[field.name] = column.to_numpy()
        elif types.is_floating(kind) or (types.is_integer(kind) and not column.null_count):
            columns[field.name] = column.to_numpy()  # of the file's own width; nulls are NaN
        elif types.is_decimal(kind):
            columns[field.name] = column.cast(pyarrow.float64()).to_pylist()
        else:
            columns[field.name] = column.to_pylist()
    table = Table(str(path), columns, typed=True)
    leave_out_indexes(table, (options.stream, options.time, *(options.features or ())))
    return table
