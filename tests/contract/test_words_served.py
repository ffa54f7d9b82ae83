"""A model of words, as ``python -m export train`` writes it: records with words give what PyTorch makes of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch
from durable import begin, encoded, make_processor, settle

from export import train
from export.config import read_config
from export.model import load
from export.prepare import read_split
from streamer.core import RecordBatch
from streamer.modelfile.model import Model
from streamer.records.decode import Codec
from streamer.records.formats import Fields
from streamer.settings.fields import parse_place

pytestmark = pytest.mark.torch

NOW_MS = 1_772_000_000_000
HEADER = ("stream", "time", "temperature", "open", "mode", "product", "label")
TOML = """
name = "pumps"
task = "classify"
[data]
path = "train.csv"
test_path = "test.csv"
categories = ["product"]
present = ["temperature", "mode"]
[model]
kind = "gru"
hidden = 8
[training]
epochs = 1
"""
PATHS = {"temperature": "readings[0].celsius", "mode": "state.mode", "product": "product.id"}


def write(path: Path, modes: list[str], seed: int, streams: int) -> list[dict[str, str]]:
    """Rows of a table; empty cells are missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for stream in range(streams):
        for step in range(10):
            hot = rng.random() < 0.4
            mode = str(rng.choice(modes))
            temperature = "" if rng.random() < 0.2 else f"{20 + 10 * hot + rng.normal():.3f}"
            cells = (temperature, str(rng.choice(["true", "false"])), mode, str(rng.choice([7, 12, 40])))
            values = (f"s{stream}", str(NOW_MS + 1_000 * step), *cells, "fault" if hot else "ok")
            rows.append(dict(zip(HEADER, values, strict=True)))
    path.write_text("\n".join([",".join(HEADER), *(",".join(row.values()) for row in rows)]))
    return rows


def event(row: dict[str, str], at: int, nested: bool) -> dict[str, Any]:
    """A record of one row: numbers that are words come as 7, 7.0 and "7"; what is missing is null or absent."""
    product = [int(row["product"]), float(row["product"]), row["product"]][at % 3]
    temperature = float(row["temperature"]) if row["temperature"] else None
    mode = row["mode"] or None
    found: dict[str, Any] = {
        "ts": int(row["time"]),
        "open": json.loads(row["open"]) if at % 2 else int(row["open"] == "true"),
    }
    if nested:
        return {**found, "readings": [{"celsius": temperature}], "state": {"mode": mode}, "product": {"id": product}}
    found |= {"product": product, "temperature": temperature, "mode": mode}
    return {name: cell for name, cell in found.items() if cell is not None or at % 2}


def test_words_are_served_as_pytorch_reads_the_table(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ["run", "idle", "wäsche", ""], seed=0, streams=12)
    rows = write(tmp_path / "test.csv", ["run", "idle", "never seen", ""], seed=1, streams=6)
    (tmp_path / "train.toml").write_text(TOML)
    assert train.main(["--config", str(tmp_path / "train.toml"), "--out", str(tmp_path / "out")]) == 0
    model, module = Model.load(tmp_path / "out" / "model.onnx"), load(tmp_path / "out" / "model.pt")
    assert [(f.kind, f.name) for f in model.contract.feature_tables] == [
        ("number", "temperature"), ("flag", "open"), ("category", "mode"), ("category", "product"),
        ("present", "temperature present"), ("present", "mode present"),
    ]  # fmt: skip
    test = read_split(read_config(tmp_path / "train.toml"), tmp_path).test
    trained = dict(zip(test.names, test.x, strict=True))
    places = Fields({name: parse_place(path) for name, path in PATHS.items()})
    for value_format, fields in (("json-named", None), ("json-named", places), ("msgpack", places)):
        encode = msgspec.msgpack.encode if value_format == "msgpack" else msgspec.json.encode
        values: list[bytes | None] = [encode(event(row, at, fields is not None)) for at, row in enumerate(rows)]
        keys: list[bytes | None] = [row["stream"].encode() for row in rows]
        raw = RecordBatch(0, list(range(len(rows))), [NOW_MS] * len(rows), keys, values)
        batch = Codec(model.contract, value_format, fields=fields).decode(raw)
        assert not batch.rejects
        for name, x in trained.items():
            mine = [place for place, key in enumerate(batch.keys) if key == name.encode()]
            np.testing.assert_array_equal(batch.x[mine], x)
        processor = make_processor([("pumps", model, None)])
        begin(processor)
        settle(processor, batch)
        epoch = processor.seal(0)
        assert epoch is not None
        answers = [json.loads(value) for out in encoded(processor, epoch) for value in out.values]
        assert len(answers) == len(rows)
        for name, x in trained.items():
            with torch.no_grad():
                outputs, _ = module(torch.from_numpy(x)[None], torch.tensor([len(x)], dtype=torch.int32))
            (output,) = model.contract.outputs
            found = np.array([each["y"] for each in answers if each["stream"] == name], np.float32)
            np.testing.assert_allclose(found, outputs[output.name][0].numpy(), atol=1e-5)
