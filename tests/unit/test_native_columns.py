"""Which code reads records: chosen, told, and refused where it cannot be."""

from __future__ import annotations

import asyncio
import re
import struct
import sys
import threading
import types
from typing import Any

import pytest
from decoding import contract, outcomes, records
from native_columns import require_native
from tables import category
from tables import contract as with_tables

from streamer.errors import ConfigurationError
from streamer.records.decode import Codec
from streamer.records.formats import Fields, Source, native
from streamer.records.schemas.book import Book, Schema
from streamer.service.check import Report, examine
from streamer.service.wiring import facts, load_models
from streamer.settings import Settings
from streamer.settings.fields import parse_place
from streamer.tools.demo import MODEL

GOOD = b'{"x":[1,2],"ts":1760000000001}'


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts something in the place of the native module; None: as if it were not installed."""

    def put(found: Any) -> None:
        monkeypatch.setitem(sys.modules, native.MODULE, found)

    return put


def test_without_the_wheel_python_reads(module: Any) -> None:
    module(None)
    codec = Codec(contract(), "json")
    assert codec.decoder == "python (streamer-rnn-native is not installed)"
    assert outcomes(codec.decode(records([GOOD])))[0][0] == "event"
    with pytest.raises(
        ConfigurationError, match=r'not installed: install the wheel .*, or set input\.decoder = "auto"'
    ):
        Codec(contract(), "json", decoder="native")


def test_a_wheel_of_another_protocol_is_not_used(module: Any) -> None:
    other = types.ModuleType(native.MODULE)
    other.PROTOCOL = native.PROTOCOL + 1  # type: ignore[attr-defined]
    module(other)
    assert f"speaks protocol {native.PROTOCOL + 1}, this version {native.PROTOCOL}" in Codec(contract(), "json").decoder
    with pytest.raises(ConfigurationError, match="speaks protocol"):
        Codec(contract(), "json", decoder="native")


def test_python_may_be_demanded() -> None:
    assert Codec(contract(), "json", decoder="python").decoder == 'python (input.decoder = "python")'


@pytest.mark.parametrize("value_format", ["msgpack", "float32"])
def test_other_formats_are_read_in_python(value_format: str) -> None:
    require_native()
    assert Codec(contract(), value_format).decoder == f'python (input.format = "{value_format}" is read in Python)'
    with pytest.raises(ConfigurationError, match=f'"{value_format}" is read in Python: set input.decoder = "auto"'):
        Codec(contract(), value_format, decoder="native")


@pytest.mark.parametrize("value_format", ["json", "json-named"])
def test_json_is_read_natively_where_the_wheel_is(value_format: str) -> None:
    require_native()
    assert Codec(contract(), value_format).decoder.startswith("native (streamer-rnn-native ")


RECORD = b'{"type":"record","name":"E","fields":[{"name":"a","type":"double"},{"name":"b","type":%s}]}'


def test_flat_avro_is_read_natively_where_the_wheel_is() -> None:
    require_native()
    for source in (Source(document=RECORD % b'"float"'), Source(Book())):  # of a registry it is not known before
        assert Codec(contract(), "avro", source=source, decoder="native").decoder.startswith(
            "native (streamer-rnn-native "
        )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            Source(document=RECORD % b'{"type":"array","items":"double"}'),
            r"records that are not flat \(input.schema_file\)",
        ),
        (Source(Book(), RECORD % b'"double"'), "values are read as input.schema_file says"),
    ],
)
def test_other_avro_is_not(source: Source, why: str) -> None:
    require_native()
    fields = Fields({"b": parse_place("b[0]")}) if source.book is None else Fields()
    assert re.search(why, Codec(contract(), "avro", source=source, fields=fields).decoder)
    with pytest.raises(ConfigurationError, match=f'{why}.*set input.decoder = "auto"'):
        Codec(contract(), "avro", source=source, fields=fields, decoder="native")


def test_avro_that_only_python_reads_comes_from_a_registry_too() -> None:
    """Whatever schemas come, flat or not, of one fetch, and one that no native code takes."""
    require_native()
    schemas = {
        1: RECORD % b'"double"',
        2: RECORD % b'["null",{"type":"record","name":"In","fields":[{"name":"x","type":"double"}]}]',
        3: RECORD % b'"float"',
    }
    book = Book()
    book.learn({number: Schema("AVRO", text.decode()) for number, text in schemas.items()})
    places = {"a": parse_place("a"), "b": parse_place("a")}
    codec = Codec(contract(), "avro", source=Source(book), fields=Fields(places), decoder="native")
    a = struct.pack("<d", 2.5)
    values = [bytes(4) + b"\1" + a + a, bytes(4) + b"\2" + a + b"\0", bytes(4) + b"\3" + a + bytes(4)]
    for log in (values, values[1:], values[2:] * 4 + values[:1]):
        assert codec.decode(records(log)).x.tolist() == [[2.5, 2.5]] * len(log)


def test_fields_that_one_type_cannot_read_are_read_natively() -> None:
    require_native()
    declared = with_tables({"name": "a"}, category("c"))
    places = {"a": parse_place("list[0]"), "c": parse_place("list[1]")}
    codec = Codec(declared, "json-named", fields=Fields(places), decoder="native")
    (row,) = codec.decode(records([b'{"list":[2,"idle"]}'])).x.tolist()
    assert row == [2.0, 2.0]


def test_a_field_that_is_read_whole_and_inside_is_not() -> None:
    require_native()
    declared = with_tables({"name": "a"}, {"name": "p", "kind": "present", "source": "in"})
    fields = Fields({"a": parse_place("in.a")})
    codec = Codec(declared, "json-named", fields=fields)
    assert codec.decoder == "python (it does not read these fields: a field is read as two kinds of thing)"
    assert codec.decode(records([b'{"in":{"a":2}}'])).x.tolist() == [[2.0, 1.0]]
    with pytest.raises(ConfigurationError, match="two kinds of thing"):
        Codec(declared, "json-named", fields=fields, decoder="native")


def test_headers_are_read_beside_native_columns() -> None:
    require_native()
    fields = Fields({"a": parse_place("header:h")}, parse_place("header:t"))
    codec = Codec(contract(), "json-named", fields=fields, decoder="native")
    batch = codec.decode(records([b'{"b":2}'], headers={0: [("h", b"7"), ("t", b"1760000000007")]}))
    assert batch.x.tolist() == [[7.0, 2.0]]
    assert batch.times_ms.tolist() == [1_760_000_000_007]


def test_a_mistake_of_the_native_code_costs_no_record(module: Any) -> None:
    class Broken:
        PROTOCOL = native.PROTOCOL

        def __init__(self, *_: Any) -> None:
            pass

        def decode(self, values: Any) -> Any:
            raise RuntimeError("it panicked")

    broken = types.ModuleType(native.MODULE)
    broken.PROTOCOL, broken.Decoder = native.PROTOCOL, Broken  # type: ignore[attr-defined]
    module(broken)
    found = outcomes(Codec(contract(), "json").decode(records([GOOD, b"{"])))
    assert [found[0][0], found[1][0]] == ["event", "undecodable"]


def test_records_of_an_unusual_kind_go_to_the_typed_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where most rows are left to Python, it reads them together and not one by one."""
    require_native()
    codec = Codec(with_tables(category("c", unknown=0), {"name": "n"}), "json-named", decoder="native")
    values = [b'{"c":"\\u0069dle","n":1}'] * 100

    def never(*_: Any) -> Any:
        raise AssertionError("one by one")

    monkeypatch.setattr(codec._format, "row", never)
    assert codec.decode(records(values)).x.tolist() == [[2.0, 1.0]] * 100


def test_what_is_no_bytes_is_left_to_python() -> None:
    found = require_native().Decoder("float32", "ms", 1, [], [([b"x"], [("numbers", 0, [None])])])
    *_, careful, timed = found.decode([None, "x", 7, b'{"x":[1]}'])
    assert (careful, timed) == (3, 0)


def test_a_large_fetch_is_read_without_the_interpreter_lock() -> None:
    """Another thread that is ready gets the lock while the native code works, and never if that kept it."""
    decoder = require_native().Decoder("float32", "ms", 1, [], [([b"x"], [("numbers", 0, [None])])])
    values = [b'{"m":"' + b"y" * 100_000 + b'","x":[1]}'] * 100
    ready, ran = threading.Event(), []

    def run() -> None:
        ready.wait()
        ran.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1_000)  # seconds: nobody gets the lock unless it is given
    try:
        ready.set()
        for _ in range(100):
            decoder.decode(values)
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(before)
        thread.join()


def test_status_and_check_say_which_code_reads() -> None:
    served = Settings(
        kafka={"bootstrap": "localhost:1", "group": "g"},
        input={"topic": "in", "decoder": "python"},
        output={"topic": "out"},
        model={"anomaly": {"path": str(MODEL)}},
    )
    told = 'python (input.decoder = "python")'
    assert facts(served, "i", load_models(served))["decoder"] == told
    report = Report()
    asyncio.run(
        examine(
            served.model_copy(update={"kafka": served.kafka.model_copy(update={"connect_timeout_ms": 100})}),
            report,
            sample=0,
        )
    )
    assert report.problems, "there is no broker"
    assert f"records are read by {told}" in list(report.lines())
    assert report.as_dict()["decoder"] == told
