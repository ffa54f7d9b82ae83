"""Writes the settings reference into deploy/README.md, from the code:  python deploy/reference.py"""

from __future__ import annotations

import re
from pathlib import Path

from streamer.settings import settings_reference

GUIDE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- settings: made by deploy/reference.py -->\n", "<!-- end of settings -->\n"


def with_reference(text: str) -> str:
    """The guide with the current reference between its two marks."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    section = f"{BEGIN}\n{settings_reference()}\n{END}"
    return re.sub(pattern, lambda _: section, text, count=1, flags=re.S)


if __name__ == "__main__":
    GUIDE.write_text(with_reference(GUIDE.read_text()))
