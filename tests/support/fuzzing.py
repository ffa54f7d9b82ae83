"""What is fuzzed: a parser of bytes that others write, with what must be true of its answer whatever the bytes are.

As a program: ``fuzzing.py guided TARGET SECONDS SEED OUT`` searches with atheris, led by coverage;
``fuzzing.py blind TARGET INPUTS SEED OUT`` only mutates, but many times faster. Both write {"inputs": number} to OUT.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

ATHERIS = __name__ == "__main__" and sys.argv[1] == "guided"
if ATHERIS:
    import atheris

with atheris.instrument_imports(include=["streamer"]) if ATHERIS else nullcontext():
    from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
    from aiokafka.record.util import calc_crc32c
    from decoding import NOW_MS, contract, outcomes
    from unsure import Unsure

    from streamer.core import RecordBatch
    from streamer.errors import ConfigurationError, DataLossError, ModelError
    from streamer.generate.request import Refused
    from streamer.generate.rollouts import Generators, Rollouts
    from streamer.kafka.batches import Raw, read
    from streamer.modelfile.contract import Contract, load_sidecar
    from streamer.records import changelog
    from streamer.records.decode import Codec
    from streamer.records.formats import SCHEMAS, Native, Source
    from streamer.records.keys import Keys
    from streamer.records.schemas import avro_flat, avro_types, protofile
    from streamer.records.schemas.avro import avro_reader
    from streamer.records.schemas.book import Book, Schema
    from streamer.records.times import TimeRule
    from streamer.records.unusable import Unusable
    from streamer.settings import GenerateSection, load_settings
    from streamer.words import Decoder, KeyForm, Reason, TimeUnit


Target = Callable[[bytes], int]
"""Takes bytes, asserts what must be true, and says how many inputs they were."""

NAMES = ("a", "b", "c")
REASONS = set(Reason)
BREAK = b"\x00\xfe"
"""Between the records of one input."""


def pieces(data: bytes) -> list[bytes]:
    return data.split(BREAK)[:64]


# values: whole fetch = each by the definition = any cut


def values_of(value_format: str, *contracts: Contract, good: bytes | None = None) -> Target:
    """``contracts``: that the values are read by; ``good``: a value that is an event by all of them."""
    source = None
    if value_format in SCHEMAS:
        source = Source(Book())
        source.book.learn(
            {
                1: Schema("AVRO", AVRO),
                2: Schema("PROTOBUF", PROTO),
                3: Schema("JSON", "{}"),
                4: None,
                5: Schema("AVRO", FLAT),
            }
        )
    codecs = [
        (
            Codec(declared, value_format, careful=False, decoder=decoder, source=source, **options),
            Codec(declared, value_format, careful=True, source=source, **options),
        )
        for decoder in ("python", "auto")  # native code, where it is installed
        for declared in contracts or (contract(NAMES), contract(NAMES, "int64"))
        for options in ({"max_future_ms": 86_400_000}, {"missing": 1.0, "time_unit": "s"})
    ]

    def run(data: bytes) -> int:
        which = codecs[data[0] % len(codecs)] if data else codecs[0]
        given = pieces(data[1:])
        values: list[bytes | None] = [
            *given,
            good or GOOD[value_format],
        ]  # one that is good, so that not all are judged alone
        count = len(values)
        log = RecordBatch(0, list(range(count)), [NOW_MS] * count, [b"s"] * count, values)
        if source is not None and source.book is not None:
            source.book.learn(dict.fromkeys(source.book.wanted(values)))
        whole = outcomes(which[0].decode(log))
        assert sorted(whole) == log.offsets
        assert whole == outcomes(which[1].decode(log))
        cut = (data[0] if data else 0) % count or 1
        found: dict[int, Any] = {}
        for first, last in ((0, cut), (cut, count)):
            if first < last:
                part = RecordBatch(
                    0, log.offsets[first:last], [NOW_MS] * (last - first), [b"s"] * (last - first), values[first:last]
                )
                found |= outcomes(which[0].decode(part))
        assert found == whole
        for outcome in whole.values():
            assert outcome[0] == "event" or outcome[0] in REASONS
        return len(given)

    return run


def steps_of(value_format: str, good: bytes) -> Target:
    """Records of several steps."""
    declared = [contract(NAMES, dtype, "many") for dtype in ("float32", "int64")]
    return values_of(value_format, *declared, good=good)


def text_contract(unknown: int | None) -> Contract:
    feature = {"name": "q", "kind": "text", "vocabulary": ["a", "b", "ab"]}
    fields = json.loads(contract(("q",)).dump())
    features = [feature if unknown is None else {**feature, "unknown": unknown}]
    return Contract.from_fields({**fields, "input": {**fields["input"], "features": features}})


def schemas(data: bytes) -> int:
    """Documents of a registry, and the value behind them read by what they say."""
    document, _, value = data.partition(BREAK)
    text = document.decode("utf-8", "backslashreplace")
    with suppress(avro_types.BadSchema):
        paths: list[tuple[str | int, ...]] = [("a",), ("c", 0), ("n", "n", "a")]
        for asked in (paths, paths[:1]):
            reader = avro_reader(avro_types.parse(text), None, asked, 0, TimeUnit.MS)
            avro_flat.flat(avro_types.parse(text), asked, 0, TimeUnit.MS)
            with suppress(Unusable):
                reader.cells(value, 0)
    from google.protobuf import descriptor_pb2

    with suppress(avro_types.BadSchema):
        protofile.parse(text, descriptor_pb2)
    return 1


def batches() -> Target:
    """A record batch, as the bytes behind its checksum say, that native code and the definition read alike: every offset is
    a record's or lies in what is told."""
    readers: list[Any] = [Unsure, *filter(None, [Native.load(Decoder.AUTO).module])]

    def run(data: bytes) -> int:
        summed = data.ljust(40, b"\0")
        if summed[1] & 0x07:
            return 1  # compressed: unpacked first, and then the same
        head = bytes(8) + (len(summed) + 9).to_bytes(4, "big") + b"\xff" * 4 + b"\2"
        raw = Raw.at(head + int(calc_crc32c(summed)).to_bytes(4, "big") + summed, 0)
        batch = DefaultRecordBatch(raw.bytes)
        found = [read(batch, raw, 0, reader)[0] for reader in readers]
        assert all(each == found[0] for each in found)
        assert found[0].offsets == sorted({at for at in found[0].offsets if 0 <= at < batch.next_offset})
        return 1

    return run


def records(data: bytes) -> int:
    """Keys, headers and commands: pieces in turn."""
    parts = pieces(data)
    forms = list(KeyForm)
    codec = Codec(contract(NAMES), "json", key=forms[len(data) % len(forms)], generates=True, max_key_bytes=40)
    log = RecordBatch(0, [], [], [], [])
    for row, part in enumerate(parts):
        log.offsets.append(row)
        log.timestamps_ms.append(NOW_MS if len(part) % 3 else -1)
        log.keys.append(part if part != b"none" else None)
        log.values.append(GOOD["json"] if row % 2 else part[::-1] or None)
        if row % 3 == 0:
            name = ["streamer-op", "traceparent", part.decode("utf-8", "backslashreplace")][len(part) % 3]
            log.headers[row] = [(name, part[1:] or None)]
    batch = codec.decode(log)
    found = outcomes(batch)
    assert sorted(found) == log.offsets
    for stream, offset in zip(batch.keys, batch.offsets.tolist(), strict=True):
        assert stream.decode()
        assert codec.keys.raw(stream) == log.keys[offset]
    return len(parts)


def texts_of_keys(data: bytes) -> int:
    for form in KeyForm:
        keys = Keys(form)
        with suppress(ValueError):
            assert keys.text(keys.raw(data)) == data
        try:
            text = keys.text(data) if data else None
        except Unusable:
            continue
        assert text is None or keys.raw(text) == data
    return 1


def times(data: bytes) -> int:
    given: object = data[1:].decode("utf-8", "surrogateescape")
    if data[:1] == b"n":
        try:
            given = float(data[1:]) if b"." in data or b"e" in data else int(data[1:60])
        except ValueError:
            return 1
    stamp = [NOW_MS, -1, 0, 2**62][len(data) % 4]
    for unit in TimeUnit:
        rule = TimeRule(unit, max_future_ms=1_000)
        column, bad = rule.column([given], np.array([stamp], np.int64))
        try:
            assert rule.event_time(given, stamp) == column[0]
            assert not bad
        except Unusable as why:
            assert bad == [0]
            assert why.reason == Reason.BAD_TIME
            why.detail.encode()
    return 1


# requests to generate


class _Model:
    def __init__(self, width: int, dtype: str, mode: str, encoding: str, labels: Sequence[str] | None) -> None:
        self.contract = Contract.from_fields(
            {
                "name": "m",
                "mode": "step",
                "input": {"name": "x", "shape": ["batch", width], "dtype": dtype},
                "states": [{"input": "h", "output": "h2", "shape": ["batch", 2]}],
                "outputs": [{"name": "y", "shape": ["batch", 4], "kind": "classes", "labels": labels}],
                "feedback": {"output": "y", "mode": mode, "encoding": encoding},
            }
        )
        self.states, self.sha256 = self.contract.states, "00" * 32

    def initial_states(self, rows: int) -> list[Any]:
        return [np.zeros((rows, 2), np.float32)]


def requests() -> Target:
    from streamer.modelfile.carried import Carried

    models: list[Any] = [
        _Model(1, "float32", "sample", "index", ["a", "b", "c", "dd"]),
        _Model(1, "int64", "argmax", "index", None),
        _Model(5, "float32", "sample", "one-hot", None),
        _Model(4, "float64", "value", "value", None),
    ]
    limits = GenerateSection.model_construct(
        max_steps=50, max_open=2, max_rows=64, max_request_bytes=400, max_answer_bytes=500
    )
    every = [Generators([("m", Carried(model))], limits, Keys()) for model in models]
    state = np.zeros(6, np.float32).tobytes()

    def run(data: bytes) -> int:
        parts = pieces(data)
        for generators in every:
            rollouts = Rollouts(0, generators)
            for row, value in enumerate(parts):
                try:
                    rollouts.ask(
                        generators.asked(value),
                        row,
                        b"s",
                        value,
                        headers=[("h", None), ("traceparent", value[:9])],
                        timestamp_ms=NOW_MS,
                        time_ms=NOW_MS,
                        state=state,
                    )
                    (rollout,) = rollouts
                    assert rollout.first.dtype == generators.by_name["m"].exact.dtype
                    assert np.isfinite(rollout.first).all()
                    rollouts.records()
                except Refused as why:
                    assert why.reason in REASONS
                    why.detail.encode()
                rollouts.drop()
        return len(parts)

    return run


# documents and records of our own


def contracts(data: bytes) -> int:
    try:
        found = Contract.parse(data)
    except ModelError as error:
        assert str(error)
    else:
        assert Contract.parse(found.dump()) == found
    return 1


def files(load: Callable[[Path], Any], error: type[Exception], name: str) -> Target:
    path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / name

    def run(data: bytes) -> int:
        path.write_bytes(data)
        try:
            load(path)
        except error as problem:
            assert str(problem)
        return 1

    return run


def progress(data: bytes) -> int:
    """As it came, and with a header and checksum that are right, so that the body is reached."""
    import zlib

    whole = changelog._PROGRESS_HEADER.pack(changelog.VERSION, zlib.crc32(data)) + data
    for value in (data, whole):
        try:
            found = changelog.decode_progress(value)
        except DataLossError as error:
            assert str(error)
        else:
            assert changelog.decode_progress(changelog.encode_progress(found)) == found
    return 2


def streams(data: bytes) -> int:
    key, _, value = data.partition(BREAK)
    for body in (value, _sealed(key, value)):
        try:
            found = changelog.decode_stream(key, body)
        except DataLossError as error:
            assert str(error)
        else:
            again = changelog.encode_stream(key, found.through, found.last_ms, found.model_id, found.state)
            assert changelog.decode_stream(key, again) == found
    return 2


def _sealed(key: bytes, value: bytes) -> bytes:
    import zlib

    size = changelog._HEADER.size
    if len(value) < size:
        return value
    _, has, through, last_ms, model_id, _ = changelog._HEADER.unpack_from(value)
    head = changelog._HEADER.pack(changelog.VERSION, has, through, last_ms, model_id, 0)
    checksum = zlib.crc32(value[size:], zlib.crc32(head, zlib.crc32(key)))
    return changelog._HEADER.pack(changelog.VERSION, has, through, last_ms, model_id, checksum) + value[size:]


def decode(values: Sequence[bytes]) -> Any:
    """A user's decoder that lies in many ways; each by the value alone."""
    firsts = [value[:1] for value in values]
    if b"!" in firsts:
        raise ValueError(values[firsts.index(b"!")].decode("utf-8", "surrogateescape"))
    x: Any = [[float(len(value)), float(value[1]) if len(value) > 1 else 0.5, 1.0] for value in values]
    if b"n" in firsts:
        x[firsts.index(b"n")] = None
    if b"w" in firsts:
        x[firsts.index(b"w")] = [1.0]
    if b"t" in firsts:
        return x, [NOW_MS], dict.fromkeys([99], "no")
    return x, None, {row: values[row].decode("utf-8", "surrogateescape") for row, f in enumerate(firsts) if f == b"r"}


_module = types.ModuleType("users_own_lies")
_module.decode = decode  # type: ignore[attr-defined]
sys.modules["users_own_lies"] = _module
USER = "users_own_lies:decode"

AVRO = json.dumps(
    {
        "type": "record", "name": "E", "fields": [
            {"name": "a", "type": ["null", "double"]},
            {"name": "b", "type": ["int", "string", {"type": "enum", "name": "S", "symbols": ["x", "y"]}, "null"]},
            {"name": "list", "type": {"type": "array", "items": "null"}},
            {"name": "n", "type": {"type": "map", "values": ["null", "E"]}},
            {"name": "c", "type": "float"},
            {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        ],
    }
)  # fmt: skip
FLAT = json.dumps(
    {
        "type": "record", "name": "E", "fields": [
            {"name": "a", "type": ["null", "double"]},
            {"name": "b", "type": ["int", "string", {"type": "enum", "name": "S", "symbols": ["x", "y"]}, "null", "boolean"]},
            {"name": "s", "type": "string"},
            {"name": "in", "type": {"type": "record", "name": "In", "fields": [
                {"name": "f", "type": {"type": "fixed", "name": "F", "size": 2}}, {"name": "more", "type": ["null", "bytes"]}]}},
            {"name": "c", "type": "float"},
            {"name": "ts", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        ],
    }
)  # fmt: skip
PROTO = """syntax = "proto3"; // comment
message E { optional double a = 1; oneof kind { int32 b = 2; string d = 5; } float c = 3; int64 ts = 4;
  repeated E more = 6; map<string, E> n = 7; reserved 8; enum S { X = 0; } S s = 9 [deprecated = true]; }
"""
GOOD = {
    "avro": b"\0\0\0\0\1\2" + bytes(8) + b"\0\2\0\0" + bytes(4) + b"\x80\xe0\x90\xdd\xc3\xb3\xa0\x06",
    "avro-flat": b"\0\0\0\0\5\2" + bytes(8) + b"\0\2\2s\0\0\2\2m" + bytes(4) + b"\x80\xe0\x90\xdd\xc3\xb3\xa0\x06",
    "protobuf": b"\0\0\0\0\2\0\x09" + bytes(8) + b"\x10\x02\x1d" + bytes(4) + b"\x20\x81\xa0\xb8\xbb\x9c\x33",
    "json-schema": b'\0\0\0\0\3{"a":1,"b":2,"c":3,"ts":1760000000001}',
    "json": b'{"x":[1,2,3],"ts":1760000000001}',
    "json-named": b'{"a":1,"b":2,"c":3,"ts":1760000000001}',
    "msgpack": b"\x84\xa1a\x01\xa1b\x02\xa1c\x03\xa2ts\xcf" + (NOW_MS + 1).to_bytes(8, "big"),
    "float32": bytes(12),
    USER: b"good",
}

_DOCUMENT = {
    "name": "m",
    "mode": "step",
    "format": 1,
    "version": "1",
    "input": {"name": "x", "shape": ["batch", "time", 3], "features": ["a", "b", "c"], "dtype": "float32"},
    "lengths": "lengths",
    "states": [{"input": "h", "output": "h2", "shape": [1, "batch", 2], "initial": [1, 2]}],
    "outputs": [{"name": "y", "shape": ["batch", "time", 4], "kind": "classes", "labels": ["a", "b", "c", "d"]}],
    "constants": {"rate": 16000},
    "feedback": {"output": "y", "mode": "sample", "encoding": "index", "at": 0},
    "metrics": {"auc": 0.5},
}
_TOML = b"""name = "m"
mode = "window"
input = {name = "x", shape = ["batch", "time", 3]}
outputs = [{name = "y", shape = ["batch", 4], kind = "vector"}]
states = [{input = "h", shape = ["batch", 2], initial = 0.5}]
"""
_SETTINGS = b"""[kafka]
bootstrap = "localhost:9092"
group = "g"
[input]
topic = "in"
format = "json"
[output]
topic = "out"
[model.m]
path = "m.onnx"
window = {kind = "tumbling", size_ms = 1000}
"""


def _good_batches() -> list[bytes]:
    """Behind their checksums."""
    found = []
    for headers in ([], [("a", b"1"), ("b", None)]):
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
        for row in range(3):
            builder.append(row, 1_700_000_000_000 + row, b"key", b'{"x":[1,2]}' if row else None, headers)
        found.append(bytes(builder.build())[21:])
    return found


def corpus(target: str) -> list[bytes]:
    """Where the search begins."""
    if target == "batches":
        return _good_batches()
    values = {
        "json": [
            b'{"x":[1.5,-2e3,16777217],"ts":1760000000}',
            b'{"x":[null,1e400,"a"],"m":[[{}]]}',
            b'{"x":[1,2,3],"x":[4,5,6]}',
        ],
        "json-named": [b'{"a":1.5,"c":9007199254740993,"ts":null}', b'{"b":true,"ts":"2025-10-09T08:53:20Z"}'],
        "msgpack": [
            b"\x81\xa1a\xcb\x7f\xf0" + bytes(6),
            b"\x83\xa1a\xc0\xa1b\xcf" + b"\xff" * 8 + b"\xa1m\xdd\x00\x00\x00\x01\x91\x81\xa1\xff\xc0",
        ],
        "avro": [
            b"\0\0\0\0\1\2" + bytes(6) + b"\xf0\x7f\2\6abc\0\2\2x\0\0" + bytes(12),
            b"\0\0\0\0\1\0\4\1\xfe\xff\xff\xff\x0f\0",
            b"\0\0\0\0\4x",
            b"\1" * 20,
            b"\0\xff\xff\xff\xff",
        ],
        "avro-flat": [
            GOOD["avro-flat"],
            b"\0\0\0\0\5\2" + bytes(6) + b"\xf8\x3f\4\2\0\1\1\0" + bytes(4) + b"\x80\xe0\x90\xdd\xc3\xb3\xa0\x06",
            b"\0\0\0\0\5\0\2\2x" + b"\0" * 9,
            GOOD["avro"],
        ],
        "protobuf": [b"\0\0\0\0\2\2\0\x2a\1a", b"\0\0\0\0\2\0" + b"\x32\x02" * 8, b"\0\0\0\0\2\4\0\2\x2a\2\xff\xff"],
        "json-schema": [b"\0\0\0\0\3{", b"\0\0\0\0\4{}", b"{}"],
        "schemas": [AVRO.encode() + BREAK + GOOD["avro"][5:], PROTO.encode(), b'"long"' + BREAK + b"\2"],
        "float32": [bytes(12), np.array([1, np.nan, np.inf], "<f4").tobytes(), b"abc"],
        "steps-json": [
            b'{"x":[[1.5,-2e3,16777217],[1,2,3]],"ts":1760000000}',
            b'{"x":[[null,1e400,"a"],[]]}',
            b'{"x":[]}',
        ],
        "steps-msgpack": [
            b"\x81\xa1x\x92\x93\x01\x02\xc0\x91\xcb\x7f\xf0" + bytes(6),
            b"\x81\xa1x\x90",
            b"\x81\xa1x\x01",
        ],
        "steps-float32": [bytes(24), np.array([1, np.nan, np.inf] * 2, "<f4").tobytes(), b"abc", b""],
        "texts": [b'{"q":"abba","ts":1760000000}', b'{"q":"\\u00fcab\\ud800"}', b'{"q":7}', b'{"q":""}'],
        "user": [b"!\xff", b"n", b"w", b"t", b"r\xed\xa0\x80", b"good"],
        "records": [b"end", b"reset", b"generate", b"none", bytes(8), bytes(16), b"\xff"],
        "requests": [
            b'{"n":3,"prompt":"abc","seed":7,"temperature":0.5,"top_k":2,"stop":"a","per_step":true,"from":"initial"}',
            b'{"n":1,"prompt":[[1,2,3,4]],"model":"m"}',
            b'{"n":9,"prompt":[1,2.5,"dd",16777217],"stop":1}',
        ],
    }
    if target in values:
        good = GOOD.get(USER if target == "user" else target, b"")
        return [b"\x00" + BREAK.join(values[target]), b"\x01" + BREAK.join([good, *values[target]]), *values[target]]
    document = json.dumps(_DOCUMENT).encode()
    kept = changelog.Progress(7, 3, 5, ((1, 2),), ((2, "late"),), {"m": "00"}, "f", "g", "id", 9, ((4, 1),))
    key = changelog.stream_key(changelog.Kind(1), "m", b"s")
    return {
        "contracts": [document, document.replace(b'"step"', b'"window"')],
        "sidecars": [_TOML],
        "settings": [_SETTINGS],
        "progress": [
            changelog.encode_progress(kept)[changelog._PROGRESS_HEADER.size :],
            changelog.encode_progress(kept),
        ],
        "streams": [key + BREAK + changelog.encode_stream(key, 5, 6, b"12345678", b"state")],
        "texts_of_keys": [b"7", b"-5", b"00ff", b"AP8Q", b"0b2f4d1e-0000-4000-8000-00000000ff01", bytes(16)],
        "times": [b"n1760000000000", b"n1.5e9", b"t2025-10-09T08:53:20+02:00", b"n-1"],
    }[target]


TARGETS: dict[str, Callable[[], Target]] = {
    "json": lambda: values_of("json"),
    "json-named": lambda: values_of("json-named"),
    "msgpack": lambda: values_of("msgpack"),
    "float32": lambda: values_of("float32"),
    "user": lambda: values_of(USER),
    "avro": lambda: values_of("avro"),
    "avro-flat": lambda: values_of("avro", good=GOOD["avro-flat"]),
    "protobuf": lambda: values_of("protobuf"),
    "json-schema": lambda: values_of("json-schema"),
    "schemas": lambda: schemas,
    "steps-json": lambda: steps_of("json", b'{"x":[[1,2,3]],"ts":1760000000001}'),
    "steps-msgpack": lambda: steps_of("msgpack", b"\x81\xa1x\x91\x93\x01\x02\x03"),
    "steps-float32": lambda: steps_of("float32", bytes(24)),
    "texts": lambda: values_of("json-named", *(text_contract(unknown) for unknown in (None, 1)), good=b'{"q":"ab"}'),
    "records": lambda: records,
    "batches": batches,
    "requests": requests,
    "contracts": lambda: contracts,
    "sidecars": lambda: files(load_sidecar, ModelError, "m.toml"),
    "settings": lambda: files(load_settings, ConfigurationError, "s.toml"),
    "progress": lambda: progress,
    "streams": lambda: streams,
    "texts_of_keys": lambda: texts_of_keys,
    "times": lambda: times,
}
_PARTS = [
    b"[" * 700,
    b"9" * 400,
    b"1e400",
    b"null",
    b"true",
    b'"\\ud800"',
    b"\xff",
    b"\x00",
    BREAK,
    b"{",
    b"}",
    b"\n",
    b"-",
    b".5",
    b"[]",
]


def mutated(target: str, seed: int) -> Iterator[bytes]:
    """Endless mutations of the corpus: bytes changed, cut out, doubled, crossed, and awkward parts put in."""
    rng, found = random.Random(seed), corpus(target)
    yield from found
    yield b""
    while True:
        data = bytearray(rng.choice(found))
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(data) + 1)
            end = min(at + rng.choice([1, 2, 8, 40]), len(data))
            kind = rng.randrange(5)
            if kind == 0 and at < len(data):
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at:end]
            elif kind == 2:
                data[at:at] = data[at:end] * rng.choice([1, 3])
            elif kind == 3:
                data[at:at] = rng.choice(_PARTS)
            else:
                data[at:end] = rng.choice(found)[:40]
        yield bytes(data)


TOGETHER = {
    "json", "json-named", "msgpack", "float32", "user", "steps-json", "steps-msgpack", "steps-float32", "texts", "records",
    "requests",
}  # fmt: skip
"""Targets whose input is many records."""


def blind(name: str, seed: int) -> Iterator[bytes]:
    """Mutations as the target takes them: records come 48 at a time."""
    source = mutated(name, seed)
    if name not in TOGETHER:
        yield from source
        return
    rng = random.Random(seed)
    while True:
        yield bytes([rng.randrange(256)]) + BREAK.join(islice(source, 48))


def unguided(name: str, inputs: int, seed: int, out: str) -> None:
    """At least so many inputs without atheris, which is many times faster."""
    target, total = TARGETS[name](), 0
    source = blind(name, seed)
    while total < inputs:
        data = next(source)
        try:
            total += target(data)
        except BaseException:
            Path(out + ".crash").write_bytes(data)
            raise
    Path(out).write_text(json.dumps({"inputs": total}))


def guided(name: str, seconds: int, seed: int, out: str) -> None:
    target = TARGETS[name]()
    inputs = runs = 0

    def one(data: bytes) -> None:
        nonlocal inputs, runs
        inputs, runs = inputs + target(data), runs + 1
        if runs % 200 == 0:
            Path(out).write_text(json.dumps({"inputs": inputs}))

    with tempfile.TemporaryDirectory() as folder:
        for index, data in enumerate(corpus(name)):
            (Path(folder) / str(index)).write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=600", f"-artifact_prefix={out}."]
        atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=3000", folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    (guided if ATHERIS else unguided)(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
