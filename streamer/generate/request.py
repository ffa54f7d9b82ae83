"""What a ``generate`` record asks for."""

from __future__ import annotations

from typing import Literal

import msgspec

from streamer.records.unusable import plain
from streamer.settings import GenerateSection
from streamer.words import Reason


class Refused(Exception):
    """A request that will not be carried out: reason code and detail for the dead-letter topic."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, plain(detail)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON value of a ``generate`` record."""

    n: int
    """Steps to generate"""
    temperature: float | None = None
    """0 takes the most probable; none: as the contract declares"""
    top_k: int | None = None
    """Draw among the k most probable classes only"""
    seed: int = 0
    prompt: str | list[int | float | str | list[int | float]] | None = None
    """Events that come first: labels (a text: one per character), classes, or whole events of F numbers"""
    begin: Literal["state", "initial"] = msgspec.field(default="state", name="from")
    stop: int | str | None = None
    """Ends after this class or label"""
    per_step: bool = False
    """One answer per step instead of one with the whole sequence"""
    model: str | None = None
    """Needed where two models generate"""


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """What a changelog record keeps of an open rollout."""

    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int
    state: bytes | None
    """None: the initial state"""


def parse_request(value: bytes, limits: GenerateSection) -> Request:
    """Refused: it is too long, or no request."""
    if len(value) > limits.max_request_bytes:
        raise Refused(
            Reason.TOO_LONG, f"value has {len(value)} bytes, generate.max_request_bytes is {limits.max_request_bytes}"
        )
    try:
        return _REQUESTS.decode(value)
    except Exception as error:  # whatever a request holds, it is carried out or refused
        raise Refused(Reason.BAD_REQUEST, f"not a request to generate: {plain(error)}") from None


def short(part: object) -> str:
    """A part of a request for people: bounded before it is made text."""
    if isinstance(part, int) and abs(part) >= 10**30:
        return "an integer of more than 30 digits"
    return repr(part[:40] if isinstance(part, str | list) else part)


_REQUESTS = msgspec.json.Decoder(Request)
