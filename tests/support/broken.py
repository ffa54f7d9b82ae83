"""Records that are no event, each in another way, and the reason that their dead letters give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_RECORD_BYTES = 20_000
"""``input.max_record_bytes`` for which one of them is too large."""


class Broken(NamedTuple):
    reason: str
    value: bytes | None
    key: bytes | None = b""
    """Empty: the key of a stream"""
    headers: tuple[tuple[str, bytes], ...] = ()


def json_records(features: int) -> list[Broken]:
    """For ``input.format = "json"`` and so many features."""
    row = b",".join([b"1.5"] * (features - 1))
    good = b'{"x":[' + row + b",1.5]}"

    def x(last: bytes) -> bytes:
        return b'{"x":[' + row + b"," + last + b"]}"

    def ts(time: bytes) -> bytes:
        return good[:-1] + b',"ts":' + time + b"}"

    return [
        Broken("undecodable", b"x"),
        Broken("undecodable", b""),
        Broken("undecodable", good[:-1]),
        Broken("undecodable", b"\xef\xbb\xbf" + good),
        Broken("undecodable", good.decode().encode("utf-16")),
        Broken("undecodable", good + good),
        Broken("undecodable", x(b"NaN")),
        Broken("undecodable", x(b"[1.5]")),
        Broken("undecodable", x(b"true")),
        Broken("undecodable", x(b'"1.5"')),
        Broken("undecodable", b"{}"),
        Broken("undecodable", b"[]"),
        Broken("undecodable", b'{"x":1.5}'),
        Broken("undecodable", good[:-1] + b',"m":"\\ud800"}'),
        Broken("undecodable", good[:-1] + b',"m":' + b"[" * 1_200 + b"]" * 1_200 + b"}"),
        Broken("wrong_width", b'{"x":[' + row + b"]}"),
        Broken("wrong_width", x(b"1.5,1.5")),
        Broken("wrong_width", b'{"x":[]}'),
        Broken("not_finite", x(b"1e400")),
        Broken("not_finite", x(b"-1e39")),
        Broken("not_finite", x(b"1" + b"0" * 400)),
        Broken("not_exact", x(b"16777217")),
        Broken("missing_feature", x(b"null")),
        Broken("missing_value", None),
        Broken("bad_time", ts(b"-1")),
        Broken("bad_time", ts(b'"noon"')),
        Broken("bad_time", ts(b"true")),
        Broken("bad_time", ts(b"[1]")),
        Broken("bad_time", ts(b"1e400")),
        Broken("bad_time", ts(b"99999999999999")),
        Broken("too_large", good[:-1] + b',"m":"' + b"a" * MAX_RECORD_BYTES + b'"}'),
        Broken("missing_key", good, None),
        Broken("bad_key", good, b"\xff\xfe"),
        Broken("unknown_command", good, b"", (("streamer-op", b"dance"),)),
        Broken("unknown_command", b"", b"", (("streamer-op", b"\xff"),)),
        Broken("undecodable", np.full(features, 1.5, "<f4").tobytes()),
    ]
