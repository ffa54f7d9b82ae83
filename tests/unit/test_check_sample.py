"""What ``check`` tells of the newest records, where models write sequences about windows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from writing import UNWRITABLE, WritingModel

from streamer.core import RecordBatch
from streamer.service.checksample import tried
from streamer.service.prepare import codec_of
from streamer.settings import load_settings

SETTINGS = """
kafka = { bootstrap = "127.0.0.1:1", group = "g" }
input = { topic = "in" }
output = { topic = "out" }
[model.m]
path = "m.onnx"
window = { kind = "record" }
"""


@pytest.mark.parametrize("mode", ["exactly-once", "ephemeral"])
def test_sequences_are_written_about_its_windows(tmp_path: Path, mode: str) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    settings, _ = load_settings(tmp_path / "settings.toml", (f"delivery.mode={mode}",), {})
    model: Any = WritingModel()
    models = [("m", model, settings.model["m"].window)]
    codec = codec_of(settings, models)
    values = [b'{"x":[%.1f],"ts":1700000000000}' % x for x in (1.0, UNWRITABLE, 2.0)]
    batch = RecordBatch(0, [0, 1, 2], [1_700_000_000_000] * 3, [b"a", b"b", b"c"], values)
    parts: Any = SimpleNamespace(models=models, input=SimpleNamespace(name="in", max_bytes=lambda policy: 1 << 20))
    sample = tried(settings, parts, codec, [batch])
    assert (sample["records"], sample["events"], sample["answers"], sample["windows"]) == (3, 3, 2, 2)
    assert '"window":' in sample["answer"]
    assert sample["rejected"]["model_refused"]["count"] == 1
