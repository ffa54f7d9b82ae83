"""What the guide says that the log says is what the code says."""

from __future__ import annotations

import re

import pytest
from observing import ROOT

GUIDE = (ROOT / "deploy" / "README.md").read_text()
TABLE = GUIDE[GUIDE.index("## What the log says") : GUIDE.index("## Disasters")]
ROWS = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \| (.+) \|$", TABLE, re.M)


@pytest.fixture(scope="module")
def sentences() -> str:
    """The sources, with literals that stand beside each other joined as Python joins them."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "streamer").rglob("*.py")))
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


def test_every_row_has_a_cause_a_word_and_an_end() -> None:
    assert len(ROWS) == len([line for line in TABLE.splitlines() if line.startswith("| ")]) - 1
    assert len(ROWS) > 30
    for cause, word, end in ROWS:
        assert re.search(r"\b[2-5]\b|goes on|tries again", end), (cause, word)


@pytest.mark.parametrize("word", sorted({word for _, word, _ in ROWS}))
def test_the_words_are_those_of_the_code(word: str, sentences: str) -> None:
    assert word in sentences


def test_the_word_for_answers_that_vanish_is_the_codes(sentences: str) -> None:
    assert "`is deleted as soon as it is written`" in GUIDE
    assert "is deleted as soon as it is written" in sentences
