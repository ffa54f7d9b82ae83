"""Encoder-decoder modules become one file that computes, step by step and freely, what PyTorch computes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.encdec import export_pair
from export.verify import verify
from streamer.core import X
from streamer.errors import ModelError
from streamer.generate.search import decode
from streamer.modelfile.contract import METADATA_KEY
from streamer.modelfile.decoder import DECODER_KEY
from streamer.modelfile.model import Model
from streamer.tools.inspect import as_table, inspect
from tests.support import pairs

BEAM = {"search": "beam", "width": 3, "length_normalisation": 0.6}


def windows(given: dict[str, Any], seed: int = 0) -> list[X]:
    chance = np.random.default_rng(seed)
    lengths = (1, 3, 7, 2, 9, 30)
    if given is pairs.WORDS:
        return [chance.integers(0, 12, (length, 1)).astype(np.int64) for length in lengths]
    return [chance.normal(size=(length, 4)).astype(np.float32) for length in lengths]


@pytest.fixture(scope="module")
def luong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("luong") / "pair.onnx"
    export_pair(pairs.luong(), pairs.fields(pairs.WORDS), path)
    return path


@pytest.mark.parametrize("search", [{}, BEAM], ids=["greedy", "beam"])
@pytest.mark.parametrize("name", list(pairs.PAIRS))
def test_a_pair_becomes_one_file_that_verifies(name: str, search: dict[str, Any], tmp_path: Path) -> None:
    make, given = pairs.PAIRS[name]
    module, path = make(), tmp_path / "pair.onnx"
    contract = export_pair(module, pairs.fields(given, **search), path)
    assert [each.name for each in tmp_path.iterdir()] == ["pair.onnx"]
    report = verify(path, module)
    assert report["passed"], report["checks"]
    assert {"parity", "padding_independence", "batch_invariance", "teacher_forced", "free_running"} <= {
        check["name"] for check in report["checks"]
    }
    model = Model.load(path)
    assert model.contract == contract
    written = decode(model, windows(given))
    assert len({each.symbols for each in written}) > 1, "the test's own model writes the same about everything"
    for window, together in zip(windows(given), written, strict=True):
        [alone] = decode(model, [window])
        assert alone.symbols == together.symbols
        assert alone.score == pytest.approx(together.score, abs=1e-5)


def test_greedy_is_the_loop_that_everybody_writes(luong: Path) -> None:
    module = pairs.luong()
    for x, got in zip(windows(pairs.WORDS, 3), decode(Model.load(luong), windows(pairs.WORDS, 3)), strict=True):
        with torch.no_grad():
            lengths = torch.tensor([len(x)])
            memory, states = module.encoder(torch.from_numpy(x[None]), lengths)
            symbol, symbols, score = 0, [], 0.0
            while True:
                log_probabilities, states = module.decoder(torch.tensor([symbol]), states, memory, lengths)
                symbol = int(log_probabilities[0].argmax())
                ended = symbol == 1
                if ended or len(symbols) == 12:
                    score += float(log_probabilities[0, 1]) if ended else 0.0
                    break
                score += float(log_probabilities[0, symbol])
                symbols.append(symbol)
        assert (got.symbols, got.truncated) == (tuple(symbols), not ended)
        assert got.score == pytest.approx(score, abs=1e-4)


def test_verify_notices_another_decoder(luong: Path) -> None:
    other = pairs.luong()
    with torch.no_grad():
        other.decoder.out.bias[3] += 0.01
    failed = [check["name"] for check in verify(luong, other)["checks"] if not check["passed"]]
    assert "teacher_forced" in failed


def test_the_limit_follows_what_rounding_does_to_the_module_itself(tmp_path: Path) -> None:
    """Attention so sharp that two right ways to compute it may differ by more than 1e-5."""
    module, path = pairs.luong(), tmp_path / "pair.onnx"
    with torch.no_grad():
        module.decoder.key.weight.mul_(64)
    export_pair(module, pairs.fields(pairs.WORDS), path)
    report = verify(path, module)
    assert report["passed"], report["checks"]
    limits = {check["name"]: check["limit"] for check in report["checks"]}
    assert 1e-5 < limits["teacher_forced"] <= 1e-4
    assert limits["parity"] == limits["free_running"] == 1e-5
    with torch.no_grad():
        module.decoder.out.bias[3] += 0.01
    assert [check["name"] for check in verify(path, module)["checks"] if not check["passed"]][:1] == ["teacher_forced"]


class Careless(pairs.LuongDecoder):
    """Attends to the padding too."""

    def forward(self, symbol: Any, states: Any, memory: Any, lengths: Any) -> Any:
        return super().forward(symbol, states, memory, torch.full_like(lengths, memory[0].shape[1]))


class Narrow(pairs.PlainDecoder):
    def __init__(self) -> None:
        super().__init__(symbols=4)


class Blind(pairs.PlainDecoder):
    """Has a memory and does not look at it."""


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (pairs.Pair(pairs.WordEncoder(), Careless()), {}, "padded memory"),
        (pairs.Pair(pairs.WordEncoder(remember=False), Narrow()), {}, "9 labels"),
        (pairs.Pair(pairs.WordEncoder(), Blind()), {}, "does not look at memory_0"),
        (pairs.luong(), {"end": "?"}, "not one of its labels"),
        (pairs.luong(), {"max_steps": 0}, "max_steps"),
        (pairs.luong(), {"search": "greedy", "width": 2}, "width is 2"),
        (nn.Linear(1, 1), {}, "submodules encoder and decoder"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    module: nn.Module, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=message):
        export_pair(module, pairs.fields(pairs.WORDS, **changes), tmp_path / "pair.onnx")
    assert list(tmp_path.iterdir()) == []


def changed(path: Path, target: Path, contract: Any = None, decoder: bytes | None = b"") -> Path:
    """The file with another table ``decoder`` in its contract, or another decoder; None: without."""
    model = onnx.load(path)
    props = {each.key: each.value for each in model.metadata_props}
    if contract is not None:
        fields = msgspec.json.decode(props[METADATA_KEY])
        contract(fields)
        props[METADATA_KEY] = msgspec.json.encode(fields).decode()
    if decoder is None:
        del props[DECODER_KEY]
    elif decoder:
        props[DECODER_KEY] = decoder.decode()
    onnx.helper.set_model_props(model, props)
    onnx.save(model, target)
    return target


def without(fields: dict[str, Any]) -> None:
    del fields["decoder"]


def renamed(fields: dict[str, Any]) -> None:
    fields["decoder"]["states"][0]["input"] = "h"


def unlike(fields: dict[str, Any]) -> None:
    fields["decoder"]["memory"] = []


def more_labels(fields: dict[str, Any]) -> None:
    fields["decoder"]["labels"].append("x")


@pytest.mark.parametrize(
    ("contract", "decoder", "message"),
    [
        (without, b"", "declares none"),
        (None, None, "there is none in metadata"),
        (None, b"%%%", "not base64"),
        (None, base64.b64encode(b"nothing"), "the decoder: the file is not an ONNX model"),
        (renamed, b"", "the decoder: the graph has no input 'h'"),
        (unlike, b"", "'memory_0' is neither memory nor a state"),
        (more_labels, b"", "the decoder: the output 'log_probabilities'"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    luong: Path, contract: Any, decoder: bytes | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        Model.load(changed(luong, tmp_path / "changed.onnx", contract, decoder))


def test_the_digest_covers_the_decoder(luong: Path, tmp_path: Path) -> None:
    other = pairs.luong()
    with torch.no_grad():
        other.decoder.out.bias[3] += 0.5
    export_pair(other, pairs.fields(pairs.WORDS), tmp_path / "pair.onnx")
    assert Model.load(tmp_path / "pair.onnx").sha256 != Model.load(luong).sha256


def test_inspect_shows_both_parts(luong: Path) -> None:
    report = inspect(luong, measure=False)
    assert report["contract"]["decoder"]["states"] == [
        {"initial": "state_0", "input": "state_0", "output": "state_0_next"}
    ]
    assert {"decoder_rows", "decoder_log_probabilities"} <= {each["name"] for each in report["probe"]["findings"]}
    assert as_table(report).row_count > 10
