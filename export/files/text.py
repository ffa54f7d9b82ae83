"""Text of a file in whatever encoding it was written.

By rule instead of by statistics: a byte order mark decides, then zero bytes (UTF-16 without a mark), then whether the
bytes are UTF-8, which other text hardly ever is by chance. What is left was written by an 8-bit Windows or Latin-1
program, and is said. A guesser by statistics (charset-normalizer) can be wrong in silence on short files.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from streamer.errors import ConfigurationError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 4_096


def read_text(path: Path, encoding: str | None = None) -> tuple[str, str | None]:
    """The whole text without its byte order mark, and a note where the encoding was a guess.

    ConfigurationError for a file that cannot be read, for an unknown encoding, and for bytes that are no text in the given one, with their line.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    found = encoding or _encoding(raw)
    if found is not None:
        return _decode(raw, found, path).removeprefix("\ufeff"), None
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError:
        pass
    note = "is not UTF-8, and was read as Windows-1252 (Latin-1): say data.encoding if letters look wrong"
    try:
        return raw.decode("cp1252"), note
    except UnicodeDecodeError:
        return raw.decode("latin-1"), note


def _encoding(raw: bytes) -> str | None:
    """What the bytes say themselves; None where they do not."""
    for mark, name in _MARKS:
        if raw.startswith(mark):
            return name
    sample = raw[:_SAMPLE_BYTES]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) // 8 and min(even, odd) <= len(sample) // 64:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _decode(raw: bytes, encoding: str, path: Path) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigurationError(
            f"{path}, line {line}: the bytes are no {encoding}: say data.encoding, or write the file again"
        ) from error
    except (LookupError, ValueError) as error:  # of what Python knows by name, not all are encodings of files
        raise ConfigurationError(
            f"{path}: data.encoding {encoding!r} is not known, or reads no such file: utf-8, latin-1, utf-16, ..."
        ) from error
