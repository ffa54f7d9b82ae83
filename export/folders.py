"""Folders that commands write into."""

from __future__ import annotations

import os
from pathlib import Path

from streamer.errors import ConfigurationError


def make_folder(folder: Path) -> Path:
    """The folder, made with all above it. ConfigurationError where none can be (a file is in its place), or not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the folder {folder} cannot be made: {why}: choose another --out") from error
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"the folder {folder} cannot be written: choose another --out")
    return folder
