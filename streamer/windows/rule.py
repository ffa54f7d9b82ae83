"""The rule of windows is the section of the settings that declares it."""

from __future__ import annotations

from streamer.settings.window import WindowSection as WindowRule

__all__ = ["WindowRule"]
