"""``[model.NAME.utterance]``: when an utterance of a stream ends, for a step model whose contract says ``emit``."""

from __future__ import annotations

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from streamer.settings.base import LONGEST_MS


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class UtteranceSection:
    """An utterance begins with a stream's first event, and ends by rules of the log, so that a replay ends it at the same
    place. What comes after it begins anew, the model's state as well; only at ``max_symbols`` the model goes on.

    Times are event times in milliseconds."""

    gap_ms: int = Field(
        default=10_000,
        ge=1,
        le=LONGEST_MS,
        description="Ends an utterance: the stream's next event is later by more than this, or its partition has moved on by "
        "more than this without the stream",
    )
    max_span_ms: int = Field(
        default=3_600_000,
        ge=1,
        le=LONGEST_MS,
        description="Ends an utterance: an event this far after its first event begins another",
    )
    max_symbols: int = Field(
        default=256, ge=1, le=16_384, description="A transcript with this many symbols is written, and the next begins"
    )

    def fingerprint(self) -> str:
        """Changes with what a replay depends on."""
        return f"{self.gap_ms},{self.max_span_ms},{self.max_symbols}"
