"""The bench model once more, in double precision and without ONNX Runtime: what sampled answers are compared with.

Gate order and equations as in PyTorch's ``nn.LSTM`` (a test compares the two)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from streamer.core import F32


def lstm_outputs(weights: Path, x: F32) -> Any:
    """y[T, O] for one sequence x[T, F]. ``weights``: npz with PyTorch's names (``core.weight_ih_l0`` ...)."""
    with np.load(weights) as file:
        named = {name: file[name].astype(np.float64) for name in file.files}

    def find(suffix: str) -> Any:
        return next(array for name, array in named.items() if name.endswith(suffix))

    w_ih, w_hh = find("weight_ih_l0"), find("weight_hh_l0")
    bias = find("bias_ih_l0") + find("bias_hh_l0")
    head_w = next(array for name, array in named.items() if name.endswith("weight") and "_l0" not in name)
    head_b = next(array for name, array in named.items() if name.endswith("bias") and "_l0" not in name)
    hidden = w_hh.shape[1]
    h, c = np.zeros(hidden), np.zeros(hidden)
    outputs = np.empty((len(x), len(head_b)))
    for step, row in enumerate(x.astype(np.float64)):
        i, f, g, o = np.split(w_ih @ row + w_hh @ h + bias, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        outputs[step] = head_w @ h + head_b
    return outputs


def _sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))
