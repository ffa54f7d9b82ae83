"""The bench model once more, in double precision and without ONNX Runtime: what sampled answers are compared with.

Gate order and equations as in PyTorch's ``nn.LSTM`` (a test compares the two)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from streamer.core import F32


def lstm_outputs(weights: Path, x: F32) -> Any:
    """y[T, O] for one sequence x[T, F]. ``weights``: npz with PyTorch's names (``core.weight_ih_l0`` ...)."""
    named = _load(weights)
    return _head(named, _hidden(named, x, ""))


def bilstm_last(weights: Path, x: F32) -> Any:
    """y[O] for one window x[T, F], from the last step of each direction (the reverse one ends at the first event)."""
    named = _load(weights)
    return _head(named, np.concatenate([_hidden(named, x, "")[-1], _hidden(named, x[::-1], "_reverse")[-1]]))


def _load(weights: Path) -> dict[str, Any]:
    with np.load(weights) as file:
        return {name: file[name].astype(np.float64) for name in file.files}


def _find(named: dict[str, Any], suffix: str) -> Any:
    return next(array for name, array in named.items() if name.endswith(suffix))


def _head(named: dict[str, Any], hidden: Any) -> Any:
    return hidden @ _find(named, "head.weight").T + _find(named, "head.bias")


def _hidden(named: dict[str, Any], x: F32, direction: str) -> Any:
    """h[T, H] of one direction, in the order in which it reads."""
    w_ih, w_hh = _find(named, f"weight_ih_l0{direction}"), _find(named, f"weight_hh_l0{direction}")
    bias = _find(named, f"bias_ih_l0{direction}") + _find(named, f"bias_hh_l0{direction}")
    h = c = np.zeros(w_hh.shape[1])
    found = np.empty((len(x), len(h)))
    for step, row in enumerate(x.astype(np.float64)):
        i, f, g, o = np.split(w_ih @ row + w_hh @ h + bias, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = found[step] = _sigmoid(o) * np.tanh(c)
    return found


def _sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))
