"""Bounds of the numbers in train.toml: beyond them no library computes, and each fails in words of its own."""

from __future__ import annotations

from typing import Annotated

import msgspec

_MOST = 2**24

Size = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
"""Of a part of a model, or of a piece of data; 0: none."""
Count = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
LARGEST = 3.4028234663852886e38
"""Of float32."""
