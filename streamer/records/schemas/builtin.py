"""Files that a Protobuf schema may import although no registry has them: serializers take them for built in, and send no
references for them.

``google/protobuf`` comes with Google's library, ``google/type`` with googleapis-common-protos. Those of Confluent are here, as its
clients have them (Apache License 2.0), without extensions: no value has these.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from streamer.errors import ConfigurationError, install_hint
from streamer.records.schemas import protofile

_PROTOBUF = (
    "timestamp", "wrappers", "duration", "struct", "any", "empty", "field_mask", "descriptor", "source_context", "type", "api",
)  # fmt: skip
_TYPE = (
    "calendar_period", "color", "date", "datetime", "dayofweek", "decimal", "expr", "fraction", "interval", "latlng",
    "localized_text", "money", "month", "phone_number", "postal_address", "quaternion", "timeofday",
)  # fmt: skip
_MODULES = {f"google/protobuf/{name}.proto": f"google.protobuf.{name}_pb2" for name in _PROTOBUF} | {
    f"google/type/{name}.proto": f"google.type.{name}_pb2" for name in _TYPE
}
"""Nothing else is ever imported because a schema says so."""
_SOURCES = {
    "confluent/meta.proto": """
        syntax = "proto3"; package confluent; import "google/protobuf/descriptor.proto";
        message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; repeated Rule rules = 4; }
        message Rule { string name = 1; string doc = 2; string expr = 3; string sql = 4; }""",
    "confluent/type/decimal.proto": """
        syntax = "proto3"; package confluent.type;
        message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }""",
    "confluent/type/variant.proto": """
        syntax = "proto3"; package confluent.type; message Variant { bytes metadata = 1; bytes value = 2; }""",
    # where decimals were before
    "confluent/types/decimal.proto": 'syntax = "proto3"; import public "confluent/type/decimal.proto";',
}


def library(name: str) -> Any:
    """A module of Google's. ConfigurationError: it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f'input.format = "protobuf" needs the extra schemas: {install_hint("schemas")} ({error})'
        ) from error


def descriptor(name: str) -> Any:
    """The file of that name, as a message. None: it is not built in."""
    pb2 = library("google.protobuf.descriptor_pb2")
    if source := _SOURCES.get(name):
        found = protofile.parse(source, pb2)
        found.name = name
        return found
    if module := _MODULES.get(name):
        found = pb2.FileDescriptorProto()
        library(module).DESCRIPTOR.CopyToProto(found)
        return found
    return None
