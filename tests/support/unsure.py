"""Native code that is never sure: then the definition of a record batch reads."""

from __future__ import annotations

from typing import Any

from aiokafka.record.util import calc_crc32c


class Unsure:
    """In the place of the native module."""

    @staticmethod
    def records(*_: Any) -> None:
        return None

    @staticmethod
    def crc32c(data: bytes, begin: int, end: int) -> int:
        return int(calc_crc32c(data[begin:end]))
