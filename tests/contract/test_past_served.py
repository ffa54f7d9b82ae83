"""A model that sees gaps in time, lags and last values: trained from JSON lines by the mapping of the service, and served with
the very same lines as records. The graph gets the same bits, and answers what PyTorch makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from streamer.modelfile.past import Past
from streamer.records.decode import Codec
from streamer.records.exact import Exact
from streamer.records.formats import Fields, as_found
from streamer.settings.fields import parse_field

pytestmark = pytest.mark.torch

NOW_MS = 1_772_000_000_000
PLACES: dict[str, Any] = {
    "temperature": {"path": "readings[0].celsius", "missing": "last"},
    "pressure": "readings[1].bar",
    "mode": {"path": "state.mode", "missing": "last"},
    "product": "product.id",
}
TOML = """
name = "pumps"
task = "classify"
[data]
path = "train.jsonl"
test_path = "test.jsonl"
stream = "pump"
time = "ts"
categories = ["product"]
present = ["temperature"]
since_last = true
lags = {pressure = [1, 3], mode = [1], temperature = [2]}
[data.fields]
temperature = {path = "readings[0].celsius", missing = "last"}
pressure = "readings[1].bar"
mode = {path = "state.mode", missing = "last"}
product = "product.id"
[model]
kind = "gru"
hidden = 8
[training]
epochs = 1
"""


def write(path: Path, modes: list[str | None], seed: int, streams: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    records, times = [], dict.fromkeys(range(streams), NOW_MS)
    for step in range(10 * streams):
        stream = step % streams
        times[stream] += int(rng.choice([1, 999, 20_000, 3_600_000]))
        hot = bool(rng.random() < 0.4)
        readings = [{"celsius": None if rng.random() < 0.3 else 20 + 10 * hot + float(rng.normal())}]
        readings.append({"bar": float(rng.normal())})  # type: ignore[dict-item]
        mode: Any = modes[int(rng.integers(len(modes)))]
        records.append(
            {
                "pump": f"s{stream}", "ts": times[stream], "readings": readings, "state": {"mode": mode},
                "product": {"id": int(rng.choice([7, 12]))}, "label": "fault" if hot else "ok",
            }
        )  # fmt: skip
    path.write_text("\n".join(map(json.dumps, records)))
    return records


def test_what_training_saw_is_what_the_graph_gets(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["run", "idle", None], seed=0, streams=12)
    rows = write(tmp_path / "test.jsonl", ["run", "idle", "never seen", None], seed=1, streams=6)
    (tmp_path / "train.toml").write_text(TOML)
    assert train.main(["--config", str(tmp_path / "train.toml"), "--out", str(tmp_path / "out")]) == 0
    model, module = Model.load(tmp_path / "out" / "model.onnx"), load(tmp_path / "out" / "model.pt")
    tables = model.contract.feature_tables
    assert {(f.kind, f.name, f.source, f.lag, f.missing) for f in tables} == {
        ("number", "temperature", None, 0, "last"), ("number", "pressure", None, 0, None),
        ("category", "mode", None, 0, "last"), ("category", "product", None, 0, None),
        ("present", "temperature present", "temperature", 0, None), ("since_last", "since_last", None, 0, None),
        ("number", "pressure lag 1", "pressure", 1, None), ("number", "pressure lag 3", "pressure", 3, None),
        ("category", "mode lag 1", "mode", 1, "last"), ("number", "temperature lag 2", "temperature", 2, "last"),
    }  # fmt: skip
    by_name = {feature.name: feature for feature in tables}
    assert by_name["mode"].vocabulary == by_name["mode lag 1"].vocabulary
    assert by_name["temperature"].fallback == by_name["temperature lag 2"].fallback != 0
    test = read_split(read_config(tmp_path / "train.toml"), tmp_path).test
    trained = dict(zip(test.names, test.x, strict=True))
    found = {name: parse_field(written) for name, written in PLACES.items()}
    fields = Fields(
        {name: place for name, (place, _) in found.items() if place is not None},
        None,
        {name: rule for name, (_, rule) in found.items() if rule is not None},
    )
    past = Past.of(as_found("json-named", tables, Exact("float32"), fields, several=False), "float32")
    assert past is not None
    assert past.name.startswith("past(float32: newest_ms, ")
    keys: list[bytes | None] = [row["pump"].encode() for row in rows]
    values: list[bytes | None] = [json.dumps(row).encode() for row in rows]
    raw = RecordBatch(0, list(range(len(rows))), [NOW_MS] * len(rows), keys, values)
    batch = Codec(model.contract, "json-named", fields=fields, max_future_ms=None).decode(raw)
    assert not batch.rejects
    for name, x in trained.items():
        mine = [row for row, key in enumerate(batch.keys) if key == name.encode()]
        assert past.whole(batch.x[mine], batch.times_ms[mine]).tobytes() == x.tobytes()
    processor = make_processor([("pumps", model, None)], pasts={"pumps": past})
    begin(processor)
    settle(processor, batch)
    epoch = processor.seal(0)
    assert epoch is not None
    answers = [json.loads(value) for out in encoded(processor, epoch) for value in out.values]
    assert len(answers) == len(rows)
    (output,) = model.contract.outputs
    for name, x in trained.items():
        with torch.no_grad():
            outputs, _ = module(torch.from_numpy(x)[None], torch.tensor([len(x)], dtype=torch.int32))
        got = np.array([each["y"] for each in answers if each["stream"] == name], np.float32)
        np.testing.assert_allclose(got, outputs[output.name][0].numpy(), atol=1e-5)
