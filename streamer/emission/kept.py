"""What is durable of a stream's utterance: one record of fixed size beside the model's states. All zero: none is open."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Kept = NDArray[Any]
"""[S] records of ``layout``, one per slot"""


def layout(max_symbols: int) -> np.dtype[Any]:
    """Little-endian, like states; an even number of symbols, so that rows have whole words."""
    return np.dtype(
        [
            ("start_ms", "<i8"),  # event time of the first event
            ("newest_ms", "<i8"),  # largest event time
            ("seen_ms", "<i8"),  # the partition's clock at the last event, at least newest_ms
            ("first", "<i8"),  # offset of the first event
            ("last", "<i8"),  # offset of the last event
            ("stamp_ms", "<i8"),  # timestamp of its record
            ("score", "<f8"),  # logarithm of the probability of the labels since the transcript began
            ("steps", "<i8"),  # since the transcript began
            ("open", "<i4"),  # 1: an utterance is open
            ("part", "<i4"),  # transcripts of this utterance that were written because they were full
            ("label", "<i4"),  # 1 + the last step's label; 0: no step yet
            ("count", "<i4"),  # symbols since the transcript began
            ("symbols", "<u2", (max_symbols + max_symbols % 2,)),
        ]
    )
