"""The guide of export/: its reference is the code's, its examples run."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import msgspec

from export.reference import GUIDE, meanings, reference, with_reference
from export.userexport import main
from streamer.core import RecordBatch
from streamer.modelfile.contract import Contract
from streamer.modelfile.parts import Feedback, Input, Output, State
from streamer.records.decode import Codec

pytestmark = pytest.mark.torch


def test_the_reference_is_current() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert with_reference(text) == text, "run: python -m export.reference"


@pytest.mark.parametrize("struct", [Contract, Input, State, Output, Feedback])
def test_every_field_is_explained(struct: type[msgspec.Struct]) -> None:
    told = meanings(struct)
    for each in msgspec.structs.fields(struct):
        assert len(told.get(each.name, "")) > 5, each.name
        assert f"`{each.name}`" in reference()


def test_the_sidecar_in_the_guide_is_a_contract() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    contracts = [fields for block in blocks if "mode" in (fields := tomllib.loads(block))]
    assert contracts
    for fields in contracts:
        Contract.from_fields(fields)


def decode(values: Sequence[bytes]) -> tuple[np.ndarray, None, dict[int, str]]:
    rows = [value.split(b",") for value in values]
    bad = {row: f"{len(row_)} columns" for row, row_ in enumerate(rows) if len(row_) != 2}
    return np.array([[0, 0] if row in bad else [float(v) for v in r] for row, r in enumerate(rows)]), None, bad


def test_a_decoder_of_the_documented_signature_is_one() -> None:
    given = {"name": "x", "shape": ["batch", "time", 2]}
    output = {"name": "y", "shape": ["batch", "time", 1], "kind": "value"}
    contract = Contract.from_fields({"name": "demo", "mode": "step", "input": given, "outputs": [output]})
    stamps = [1_700_000_000_000] * 3
    raw = RecordBatch(0, [0, 1, 2], stamps, [b"k"] * 3, [b"1,2", b"3", b"4,5"])
    decoded = Codec(contract, f"{__name__}:decode").decode(raw)
    np.testing.assert_array_equal(decoded.x, [[1, 2], [4, 5]])
    assert decoded.times_ms.tolist() == stamps[:2]
    assert [(reject.offset, reject.reason, reject.detail) for reject in decoded.rejects] == [
        (1, "undecodable", "1 columns")
    ]


def test_help_states_what_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(
        each in said for each in ("forward(x, lengths, state)", "state_dict", "--draft", "safetensors", "input =")
    )
    with pytest.raises(SystemExit) as stopped:
        main(["m:make", "--out", "x.onnx"])
    assert stopped.value.code == 2
    assert "--weights, --contract" in capsys.readouterr().err


def test_what_only_the_user_knows_is_asked_for_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import their_modules
    import torch

    torch.save(their_modules.NormedGru().state_dict(), tmp_path / "w.pt")
    (tmp_path / "c.toml").write_text("version = '2'\n")
    options = ["--weights", str(tmp_path / "w.pt"), "--contract", str(tmp_path / "c.toml")]
    assert main(["their_modules:NormedGru", *options, "--out", str(tmp_path / "m.onnx")]) == 3
    said = capsys.readouterr().err
    assert "lacks name and input (name, shape" in said
    assert "--draft" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "sentence"), [("w.pt/m.onnx", "w.pt cannot be made: File exists"), ("dir.onnx", "dir.onnx is a folder")]
)
def test_a_place_where_nothing_can_be_written_is_a_mistake_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, sentence: str
) -> None:
    import their_modules
    import torch

    (tmp_path / "dir.onnx").mkdir()
    torch.save(their_modules.NormedGru().state_dict(), tmp_path / "w.pt")
    (tmp_path / "c.toml").write_text('name = "m"\ninput = { shape = ["batch", "time", 4] }\n')
    options = ["--weights", str(tmp_path / "w.pt"), "--contract", str(tmp_path / "c.toml")]
    assert main(["their_modules:NormedGru", *options, "--out", str(tmp_path / out)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("Tagger", {"mode": "window", "input": {"name": "x", "shape": ["batch", "time"], "dtype": "int64"}}),
        ("TimeFirst", {"mode": "step", "input": {"name": "x", "shape": ["time", "batch", 4]}}),
        ("CellLoop", {"mode": "step", "input": {"name": "x", "shape": ["batch", "time", 3]}}),
    ],
)
def test_a_draft_of_a_module_is_a_contract(
    factory: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"their_modules:{factory}", "--draft"]) == 0
    text = capsys.readouterr().out
    fields = tomllib.loads(text)
    assert {key: fields[key] for key in expected} == expected
    assert "DECIDE" in text
    Contract.from_fields(fields)
