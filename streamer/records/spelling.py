"""A text as places in a vocabulary: characters, or pieces of several, the longest that fits first; or words between blanks.

The same in training and in service: ``Spelling(vocabulary, unknown).places("text")``. Characters are Unicode code points as
they come: nothing is folded, trimmed or normalised, so do that to both or to none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


class Spelling:
    """One vocabulary. ``unknown``: the place of a character that no piece begins with, or of another word; None: there is none.
    ``words``: the text is cut at its blanks (as by ``str.split``), and what is between them is looked up whole."""

    def __init__(self, vocabulary: Sequence[str], unknown: int | None = None, *, words: bool = False) -> None:
        self._places = {piece: place for place, piece in enumerate(vocabulary)}
        self._unknown, self._words = unknown, words
        self._lengths: dict[str, tuple[int, ...]] = {}
        """First character -> lengths of the pieces that begin with it, the longest first"""
        for piece in vocabulary:
            if piece:
                known = {*self._lengths.get(piece[0], ()), len(piece)}
                self._lengths[piece[0]] = tuple(sorted(known, reverse=True))
        self._single = all(len(piece) == 1 for piece in vocabulary)

    def places(self, text: str, most: int | None = None) -> list[int]:
        """One for each character, piece or word of ``text``. KeyError, with it, for one that has no place.

        ``most``: of a text that has more, only one more is looked for: a long one with many pieces takes long."""
        limit = sys.maxsize if most is None else most + 1
        if self._words:
            words = text.split() if most is None else text.split(None, limit)[:limit]
            return [self._place(word) for word in words]
        if self._single:
            text = text[:limit]
            found = list(map(self._places.get, text))
            if None not in found:
                return found  # type: ignore[return-value]
        places: list[int] = []
        at, size = 0, len(text)
        while at < size and len(places) < limit:
            for length in self._lengths.get(text[at], ()):
                place = self._places.get(text[at : at + length])
                if place is not None:
                    places.append(place)
                    at += length
                    break
            else:
                if self._unknown is None:
                    raise KeyError(text[at])
                places.append(self._unknown)
                at += 1
        return places

    def _place(self, word: str) -> int:
        place = self._places.get(word, self._unknown)
        if place is None:
            raise KeyError(word)
        return place
