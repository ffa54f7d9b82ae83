"""When each word ends that espeak-ng says: ``python wordends.py TEXT VOICE SPEED PITCH GAP`` writes milliseconds.

Its library tells what its program does not. A process of its own for each text, without any import that takes time:
what the library said before changes how long sounds are, by some milliseconds, and it cannot be started twice.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from typing import Any

LIBRARY = "libespeak-ng.so.1"
_SYNCHRONOUS, _PHONEMES = 2, 1
_SPEED, _PITCH, _GAP = 1, 3, 7
_UTF8 = 1
WORD, PHONEME = 1, 7
_PAUSE = b"_"

Told = tuple[int, int, int, bytes]
"""WORD or PHONEME, the word's position in the text (from 1), ms from the first sample, the phoneme's name."""


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),
    )


class _Voice(ctypes.Structure):
    """espeak_VOICE of speak_lib.h; what is zero does not count."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("kind", ctypes.c_ubyte * 4),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


def ends_of(events: Iterable[Told]) -> list[int]:
    """Milliseconds at which each word ends: where the pause after it begins, or the next word."""
    ends: dict[int, int] = {}
    at = 0  # of the word that is being said; 0: none (some voices tell of a word at 0 after the last)
    for kind, position, ms, phoneme in events:
        if at and (kind == WORD or phoneme.startswith(_PAUSE)):
            ends[at], at = ms, 0
        if kind == WORD and position not in ends:
            at = position
    return [ends[place] for place in sorted(ends)]


def events_of(text: str, voice: str, speed: int, pitch: int, gap: int) -> list[Told]:
    """What the library tells, in order of time. OSError: it is not there; ValueError: it does not take this."""
    library, found = ctypes.CDLL(LIBRARY), list[Told]()

    def hear(_samples: Any, _count: int, events: Any) -> int:
        at = 0
        while events[at].type:
            event = events[at]
            if event.type in (WORD, PHONEME):
                name = bytes(event.phoneme) if event.type == PHONEME else b""
                found.append((event.type, event.text_position, event.audio_ms, name))
            at += 1
        return 0

    if library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEMES) < 0:
        raise ValueError(f"{LIBRARY} does not start: is espeak-ng-data installed?")
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))(hear)
    library.espeak_SetSynthCallback(callback)
    as_language = ctypes.byref(_Voice(languages=voice.encode()))  # as the program does with what is no name
    if library.espeak_SetVoiceByName(voice.encode()) and library.espeak_SetVoiceByProperties(as_language):
        raise ValueError(f"{LIBRARY} knows no voice {voice!r}")
    for which, value in ((_SPEED, speed), (_PITCH, pitch), (_GAP, gap)):
        library.espeak_SetParameter(which, value, 0)
    said = text.encode()
    library.espeak_Synth(said, ctypes.c_size_t(len(said) + 1), 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return found


def main(text: str, voice: str, *numbers: str) -> int:
    try:
        ends = ends_of(events_of(text, voice, *map(int, numbers)))
        if len(ends) != len(text.split()):
            raise ValueError(f"{LIBRARY} tells {len(ends)} words of {text!r}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*ends)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
