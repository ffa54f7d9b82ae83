"""Formats of values: each one a small file that says what one value means, and how many are read at once.

``row`` is the definition. ``columns`` is only faster: for a value that it is not sure of it says so, and ``row`` decides.
So what a record means depends neither on its neighbours nor on which of the two ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamer.errors import ConfigurationError
from streamer.modelfile.feature import Feature
from streamer.records.exact import Exact
from streamer.records.formats.base import Columns, Format
from streamer.records.formats.float32 import Float32
from streamer.records.formats.json_list import JsonList
from streamer.records.formats.named import TIME, Fields, as_placed, named, places_of
from streamer.records.formats.native import Native
from streamer.records.formats.registered import JsonSchema, Registered
from streamer.records.formats.several import several
from streamer.records.formats.user import User
from streamer.records.formats.wire import Json, Msgpack, Wire
from streamer.records.meaning import as_listed, as_read, meanings
from streamer.records.schemas.book import SchemaKind
from streamer.records.schemas.values import Source
from streamer.words import TimeUnit

__all__ = [
    "FIELDED",
    "NAMED",
    "SCHEMAS",
    "TIME",
    "Columns",
    "Fields",
    "Format",
    "Native",
    "Source",
    "as_found",
    "format_of",
    "places_of",
]


NAMED: dict[str, type[Wire]] = {"json-named": Json, "msgpack": Msgpack}
"""Formats whose values have fields with names in them"""
SCHEMAS = {"avro": SchemaKind.AVRO, "protobuf": SchemaKind.PROTOBUF, "json-schema": SchemaKind.JSON}
"""Formats whose values were written by a schema"""
FIELDED = (*NAMED, *SCHEMAS)
"""Formats of which ``[input.fields]`` can say where a feature is"""


def format_of(
    name: str,
    features: Sequence[Feature],
    exact: Exact,
    missing: int | float | None,
    unit: TimeUnit,
    fields: Fields,
    max_steps: int | None,
    native: Native,
    source: Source | None = None,
) -> Format:
    """``json``, ``json-named``, ``msgpack``, ``float32``, ``avro``, ``protobuf``, ``json-schema``, or MODULE:FUNCTION.
    ``max_steps``: of a record that holds several; None: it holds one.

    ``missing``: what stands for a null for which the contract has no rule. ``source``: of schemas. ConfigurationError: there
    is no such format, or it cannot have what is asked of it."""
    if max_steps is not None and name in SCHEMAS:
        raise ConfigurationError(
            f"input.format = {name!r}: a record of the model's input holds several steps, which are not made from records "
            'with a schema: set input.format to "json", "msgpack" or "float32"'
        )
    if max_steps is not None:
        native.without("records of several steps are read in Python")
        return several(name, features, exact, missing, unit, fields, max_steps)
    if name not in ("json", "json-named", "json-schema", "avro"):
        native = native.without(f'input.format = "{name}" is read in Python')
    if name in SCHEMAS:
        return _by_schema(name, features, exact, missing, unit, fields, native, source or Source())
    if name in NAMED:
        return named(name, NAMED[name](), features, exact, missing, unit, fields, native)
    if fields.given:
        raise ConfigurationError(
            f"input.format = {name!r} has no fields with names: leave out [input.fields] and input.time, or set "
            f"input.format to one of {', '.join(FIELDED)}"
        )
    names = [feature.name for feature in features]
    if name == "json":
        return JsonList(meanings(as_listed(features, exact), exact, missing), exact, unit, native)
    return Float32(names, exact) if name == "float32" else User(name, names, exact)


def _by_schema(
    name: str,
    features: Sequence[Feature],
    exact: Exact,
    missing: int | float | None,
    unit: TimeUnit,
    fields: Fields,
    native: Native,
    source: Source,
) -> Format:
    if source.book is not None and name == "json-schema":
        return JsonSchema(named(name, Json(), features, exact, missing, unit, fields, native), source.book)
    if name == "json-schema":
        raise ConfigurationError(
            'input.format = "json-schema" is that of a registry: set registry.url, or input.format = "json-named"'
        )
    if source.book is None and source.document is None:
        raise ConfigurationError(
            f"input.format = {name!r} needs the schema that values are written by: set registry.url, or input.schema_file "
            "for values without a registry's frame"
        )
    wanted, places = as_placed(name, features, exact, missing, fields)
    return Registered(SCHEMAS[name], source, wanted, places, fields.time or TIME, exact, unit, native)


def as_found(
    name: str, features: Sequence[Feature], exact: Exact, fields: Fields, *, several: bool
) -> tuple[Feature, ...]:
    """What the format ``name`` leaves of ``features`` for the stream's past to make (``streamer.modelfile.past``).
    ``several``: a record holds several steps, whose numbers are found by their place, also in ``msgpack``."""
    if name == "json" or (several and name == "msgpack"):
        return as_listed(features, exact)
    return as_read(features, fields.places, fields.missing) if name in FIELDED else ()
