"""Checkpoints of the usual kinds, and the sentence for each that cannot be used."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import their_modules
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from export.modules.checkpoints import fold, fold_state, load_into, read_state
from export.modules.factory import build_module, make
from streamer.errors import ModelError

pytestmark = pytest.mark.torch


def net() -> nn.Module:
    return nn.ModuleDict({"rnn": nn.LSTM(3, 4), "norm": nn.LayerNorm(4), "fc": nn.Linear(4, 2)})


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(value.shape) for name, value in module.state_dict().items()}


def saved(document: Any, folder: Path) -> Path:
    path = folder / "w.pt"
    torch.save(document, path)
    return path


def assert_loads(state: dict[str, Any], expected: dict[str, torch.Tensor]) -> list[str]:
    module = net()
    notes = load_into(module, state, "net")
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    return notes


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"state": {}}},
        lambda w: {"model_state_dict": w, "loss": 0.5},
        lambda w: {"model": w, "args": {"lr": 0.1}},
        lambda w: {"model": {"state_dict": w, "name": "m"}},
        lambda w: {"epoch": np.int64(3), "best": np.float64(0.9), "f": np.float32(1), "ok": np.bool_(True), "state_dict": w},
    ],
)  # fmt: skip
def test_wrappers_and_numpy_scalars(wrapped: Any, tmp_path: Path) -> None:
    expected = weights(net())
    state, _ = read_state(saved(wrapped(expected), tmp_path))
    assert assert_loads(state, expected) == []


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "model._orig_mod.", "module._orig_mod.", "a.b."]
)
def test_prefixes_are_taken_off_and_said(prefix: str) -> None:
    expected = weights(net())
    state = {prefix + name: value for name, value in expected.items()}
    state |= {"loss.weight": torch.ones(2)} if prefix == "model." else {}
    notes = assert_loads(state, expected)
    assert "taken off" in notes[0]
    if prefix == "model.":
        assert "left out: loss.weight" in notes[0]


def test_a_compiled_submodule(tmp_path: Path) -> None:
    expected = weights(net())
    state = {name.replace("rnn.", "rnn._orig_mod."): value for name, value in expected.items()}
    assert "_orig_mod" in assert_loads(state, expected)[0]


@given(st.permutations(["model.", "ema_model."]))
def test_of_several_prefixes_the_usual_one_is_taken(order: list[str]) -> None:
    expected = weights(net())
    state = {}
    for prefix in order:
        other = {name: value + (prefix != "model.") for name, value in expected.items()}
        state |= {prefix + name: value for name, value in other.items()}
    assert_loads(state, expected)


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16"), (torch.float64, "float64")]
)
def test_other_precisions_are_converted_and_said(dtype: torch.dtype, said: str, tmp_path: Path) -> None:
    expected = {name: value.to(dtype) for name, value in weights(net()).items()}
    state, notes = read_state(saved(expected, tmp_path))
    assert f"8 {said} tensors were converted to float32" in notes
    assert all(value.dtype == torch.float32 for value in state.values())
    assert_loads(state, {name: value.float() for name, value in expected.items()})


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    expected = weights(net())
    safetensors.save_file({f"module.{k}": v.bfloat16() for k, v in expected.items()}, tmp_path / "w.safetensors")
    state, notes = read_state(tmp_path / "w.safetensors")
    assert "bfloat16" in notes[0]
    assert_loads(state, {name: value.bfloat16().float() for name, value in expected.items()})
    (tmp_path / "w.safetensors").write_bytes(b"\x05 nonsense")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read_state(tmp_path / "w.safetensors")


class Opens:
    """What a hostile file would do when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/should-not-exist",)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (their_modules.NormedGru(), "pickled their_modules.NormedGru.*save module.state_dict"),
        ({"state_dict": {}, "hook": Opens()}, "pickled (posix|nt|os).system.*could run foreign code"),
        ({"array": np.array([object()], dtype=object)}, "pickled numpy.*save module.state_dict"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds no state dict \\(it holds 'epoch'\\)"),
        ({}, "it holds nothing"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "w is a torch.complex64 tensor"),
        ({"w": torch.ones(2, 2).to_sparse()}, "only plain dense weights"),
        ({"w": torch.tensor([1e300], dtype=torch.float64)}, "w holds numbers that are too large"),
    ],
)
def test_files_that_are_refused(document: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        read_state(saved(document, tmp_path))
    assert re.search(said, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert not Path("/tmp/should-not-exist").exists()


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_state(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="is a folder"):
        read_state(tmp_path)


def test_names_that_differ_are_named_with_the_closest() -> None:
    state = weights(net())
    state["fc1.weight"], state["norm.bias"] = state.pop("fc.weight"), torch.ones(7)
    with pytest.raises(ModelError) as raised:
        load_into(net(), state, "theirs:net")
    said = str(raised.value)
    assert "missing in the file: fc.weight (closest: fc1.weight)" in said
    assert "unknown to the module: fc1.weight (closest: fc.weight)" in said
    assert "norm.bias is [7] in the file and [4] in the module" in said
    assert "theirs:net" in said


def test_weights_that_diverged_are_refused() -> None:
    state = weights(net())
    state["rnn.weight_hh_l0"][0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"not finite \(rnn.weight_hh_l0: 1 of 64 values\)"):
        load_into(net(), state, "net")
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
    load_into(masked, masked.state_dict(), "masked")  # a mask is no weight


def randomised() -> nn.Module:
    torch.manual_seed(2)
    module = their_modules.normed_weights()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.eval()


def test_weight_norm_old_and_new_is_folded_in_the_module_in_the_file_or_in_both() -> None:
    x = torch.randn(2, 5, 3)
    trained = randomised()
    with torch.no_grad():
        expected = trained(x)
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    assert {"fc.weight_g", "first.parametrizations.weight_hh_l0.original0"} <= set(state)
    both, in_file = their_modules.normed_weights(), their_modules.NormedGru()
    assert "first.weight_hh_l0" in load_into(both, state, "m")[-1]
    load_into(in_file, {f"module.{name}": value for name, value in state.items()}, "m")
    in_module = their_modules.normed_weights()
    load_into(in_module, in_file.state_dict(), "m")
    for module in (both, in_file, in_module):
        module.eval()
        assert not any("param" in name or name.endswith("_g") for name, _ in module.named_parameters())
        with torch.no_grad():
            torch.testing.assert_close(module(x), expected)


def test_other_parametrisations_are_folded() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.nn.utils.parametrizations.spectral_norm(module[0])
    torch.nn.utils.parametrizations.orthogonal(module[1])
    module.eval()
    x = torch.randn(5, 3)
    with torch.no_grad():
        expected = module(x)
        assert fold(module) == ["0.weight", "1.weight"]
        torch.testing.assert_close(module(x), expected)
    assert list(module.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


@given(st.integers(0, 2), st.integers(0, 1000))
def test_folded_pairs_are_what_torch_computes(dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv1d(3, 4, 2, bias=False)
    torch.nn.utils.parametrizations.weight_norm(layer, dim=dim)
    nn.init.normal_(layer.parametrizations.weight.original0)
    folded = fold_state(dict(layer.state_dict()))
    torch.testing.assert_close(folded, {"weight": layer.weight.detach()})


THEIRS = """
import sys
from torch import nn
print("loading")
class Inner:
    make = staticmethod(lambda: nn.Linear(2, 2))
built = nn.Linear(2, 3)
def fails():
    raise KeyError("size")
def exits():
    sys.exit("usage: ...")
def half():
    return nn.Linear(2, 2).half()
number = 3
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "mods_ok": THEIRS,
        "mods_syntax": "def (:\n",
        "mods_needs": "import no_such_dependency_here\n",
        "mods_raises": "x = 1\nraise RuntimeError('no GPU')\n",
        "mods_exits": "import argparse\nargparse.ArgumentParser().parse_args(['--bad'])\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("mods_ok", "names no factory: write PACKAGE.MODULE:FACTORY"),
        ("mods_ok.py:half", "names no factory.*such as mods_ok:half"),
        ("./models/net.py:Net", "such as models.net:Net"),
        ("mods_none:make", "there is no module 'mods_none' here .* set PYTHONPATH"),
        ("mods_needs:make", "mods_needs needs 'no_such_dependency_here' in mods_needs.py, line 1: install it"),
        ("mods_syntax:make", "SyntaxError .* in mods_syntax.py, line 1"),
        ("mods_raises:make", r"RuntimeError \(no GPU\) in mods_raises.py, line 2"),
        ("mods_exits:make", "SystemExit"),
        ("mods_ok:Nothing", "mods_ok has no 'Nothing'; it has Inner, exits, fails, half"),
        ("mods_ok:number", "is a int, no callable"),
        ("mods_ok:fails", r"failed: KeyError \('size'\) in mods_ok.py, line 9"),
        ("mods_ok:exits", r"failed: SystemExit \(usage: ...\)"),
        ("their_modules:NeedsArguments", r"needs the arguments vocabulary, hidden: .* def make\(\): return NeedsArguments\("),
        ("their_modules:raising", r"failed: FileNotFoundError \(vocab.json\) in their_modules.py, line \d+"),
    ],
)  # fmt: skip
def test_a_factory_that_fails_ends_in_a_sentence_with_the_place(
    factory: str, said: str, theirs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError) as raised:
        make(factory)
    assert re.search(said, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == "", "stdout is for data"


def test_factories_may_be_attributes_and_instances_and_of_half_precision(theirs: None) -> None:
    assert isinstance(make("mods_ok:Inner.make"), nn.Linear)
    assert isinstance(make("mods_ok:built"), nn.Linear)
    module = build_module("mods_ok:half", nn.Linear(2, 2).state_dict())
    assert module.weight.dtype == torch.float32
    assert not module.training
