"""What a module written for one unpadded sequence says of its time axis, said of each row's own length instead.

``y[:, -1]``, ``y.mean(1)``, ``softmax`` over time and the like would look at the padding of a ragged batch. While a graph
is traced they are replaced by the same over each row's valid steps, so that windows of different length share a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_T = torch.Tensor
_LOWEST = {"max": -torch.inf, "min": torch.inf, "softmax": -torch.inf}
_REDUCTIONS: dict[Any, str] = {
    **dict.fromkeys((_T.mean, torch.mean), "mean"),
    **dict.fromkeys((_T.sum, torch.sum), "sum"),
    **dict.fromkeys((_T.amax, torch.amax, _T.max, torch.max), "max"),
    **dict.fromkeys((_T.amin, torch.amin, _T.min, torch.min), "min"),
    **dict.fromkeys(
        (_T.softmax, torch.softmax, F.softmax, _T.log_softmax, torch.log_softmax, F.log_softmax), "softmax"
    ),
    **dict.fromkeys((_T.logsumexp, torch.logsumexp), "softmax"),
}
_FLIPS = (_T.flip, torch.flip)
_SELECTS = (_T.select, torch.select)
_ADAPTIVE = (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)
_POOLS: dict[Any, str] = {
    **dict.fromkeys((*_ADAPTIVE, F.avg_pool1d, torch.avg_pool1d), "mean"),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), "max"),
}
_EMBEDDINGS = {F.embedding: (1, 0), torch.embedding: (0, 1)}
"""Function -> where its table and its index are among the arguments."""


class Ragged(TorchFunctionMode):
    """``lengths``[B] int32 of the batch that is traced, its symbolic numbers of rows and steps; None: only embeddings.

    A negative index of an embedding would count from its end in a graph; it is made one that the runtime refuses, as it
    does one beyond the end: such an event is rejected, never answered by another word.
    """

    def __init__(self, lengths: Tensor | None, rows: Any, steps: Any) -> None:
        super().__init__()
        self._lengths, self._rows, self._steps = lengths, _expression(rows), _expression(steps)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in _EMBEDDINGS and len(args) > 1:
            table, index = (args[place] for place in _EMBEDDINGS[func])
            index = torch.where(index < 0, table.shape[0], index)
            first = (index, table) if _EMBEDDINGS[func][0] else (table, index)
            return func(*first, *args[2:], **options)
        if self._lengths is not None and self._steps is not None and args and isinstance(args[0], Tensor):
            changed = self._changed(func, args, options)
            if changed is not None:
                return changed
        return func(*args, **options)

    def _changed(self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        value = args[0]
        if func is _T.__getitem__:
            return self._item(value, args[1])
        if func in _SELECTS:
            axis, index = _argument(args, options, 1, "dim"), _argument(args, options, 2, "index")
            if index == -1 and isinstance(axis, int) and self._is_time(value, axis):
                return self._last(value, axis).select(axis, 0)
        if func in _FLIPS:
            axes = [*args[1:]] or [options.get("dims")]
            axes = list(axes[0]) if isinstance(axes[0], tuple | list) else axes
            if len(axes) == 1 and self._is_time(value, axes[0]):
                return self._flipped(value, axes[0])
        if func in _POOLS and value.ndim == 3 and self._is_time(value, 2):
            adaptive = func in _ADAPTIVE
            size = _argument(args, options, 1, "output_size" if adaptive else "kernel_size")
            size = size[0] if isinstance(size, tuple | list) else size
            if (size == 1) if adaptive else (_expression(size) == self._steps):
                how = _POOLS[func]
                return self._masked(value, 2, how).amax(2, True) if how == "max" else self._mean(value, 2, True)
        if func in _REDUCTIONS:
            return self._reduced(func, _REDUCTIONS[func], args, options)
        return None

    def _item(self, value: Tensor, index: Any) -> Any:
        """``value[..., -1, ...]`` and ``value[..., -1:, ...]`` along time."""
        items = list(index) if isinstance(index, tuple) else [index]
        taken = sum(item is not None and item is not Ellipsis for item in items)
        if any(isinstance(item, Tensor | list) for item in items):
            return None
        axis = 0
        for place, item in enumerate(items):
            if item is Ellipsis:
                axis += value.ndim - taken
                continue
            last = (
                item == -1 if isinstance(item, int) else item == slice(-1, None) if isinstance(item, slice) else False
            )
            if last and self._is_time(value, axis):
                items[place] = 0 if isinstance(item, int) else slice(None)
                return self._last(value, axis)[tuple(items)]
            axis += item is not None
        return None

    def _reduced(self, func: Callable[..., Any], how: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        value = args[0]
        axis = options.get("axis", _argument(args, options, 1, "dim"))
        axes = list(axis) if isinstance(axis, tuple | list) else [axis]
        if len(axes) != 1 or not isinstance(axes[0], int) or not self._is_time(value, axes[0]):
            return None
        if how == "mean":
            return self._mean(value, axes[0], bool(_argument(args, options, 2, "keepdim", False)))
        return func(self._masked(value, axes[0], how), *args[1:], **options)

    def _mean(self, value: Tensor, axis: int, keep: bool) -> Tensor:
        assert self._lengths is not None
        total = self._masked(value, axis, "sum").sum(axis, keepdim=True)
        shape = [1] * value.ndim
        shape[self._batch_axis(value, axis)] = -1
        mean = total / self._lengths.to(value.dtype).reshape(shape)
        return mean if keep else mean.squeeze(axis)

    def _masked(self, value: Tensor, axis: int, how: str) -> Tensor:
        """Beyond a row's length: what does not count."""
        fill = _LOWEST.get(how, 0.0)
        if not value.is_floating_point():
            info = torch.iinfo(value.dtype) if value.dtype != torch.bool else None
            fill = 0 if info is None or how == "sum" else info.min if how in ("max", "softmax") else info.max
        return torch.where(self._valid(value, axis), value, torch.tensor(fill, dtype=value.dtype))

    def _valid(self, value: Tensor, axis: int) -> Tensor:
        """[B, T] as the axes of ``value`` that they are, 1 elsewhere."""
        assert self._lengths is not None
        axis %= value.ndim
        batch = self._batch_axis(value, axis)
        valid = self._places(value, axis) < self._lengths[:, None]
        shape = [1] * value.ndim
        shape[axis], shape[batch] = value.shape[axis], value.shape[batch]
        return (valid if batch < axis else valid.transpose(0, 1)).reshape(shape)

    def _places(self, value: Tensor, axis: int) -> Tensor:
        return torch.arange(value.shape[axis], dtype=torch.int32)[None]

    def _last(self, value: Tensor, axis: int) -> Tensor:
        """The last valid step of each row; the axis stays, with one element."""
        assert self._lengths is not None
        axis %= value.ndim
        return self._picked(value, axis, (self._lengths - 1)[:, None])

    def _flipped(self, value: Tensor, axis: int) -> Tensor:
        assert self._lengths is not None
        axis %= value.ndim
        places, ends = self._places(value, axis), self._lengths[:, None]
        return self._picked(value, axis, torch.where(places < ends, ends - 1 - places, places))

    def _picked(self, value: Tensor, axis: int, index: Tensor) -> Tensor:
        """Steps index[B, N] of each row along ``axis``."""
        batch = self._batch_axis(value, axis)
        shape: list[Any] = [1] * value.ndim
        shape[batch], shape[axis] = index.shape[0], index.shape[1]
        index = (index if batch < axis else index.transpose(0, 1)).reshape(shape)
        full = [size if place not in (batch, axis) else -1 for place, size in enumerate(value.shape)]
        return value.gather(axis, index.to(torch.int64).expand(full))

    def _is_time(self, value: Tensor, axis: Any) -> bool:
        if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
            return False
        return _expression(value.shape[axis]) == self._steps and self._batch_axis(value, axis % value.ndim) >= 0

    def _batch_axis(self, value: Tensor, axis: int) -> int:
        places = [p for p, size in enumerate(value.shape) if p != axis and _expression(size) == self._rows]
        return places[0] if places else -1


def _expression(size: Any) -> Any:
    """A symbolic size as something that can be compared without a guard; None for a number."""
    node = getattr(size, "node", None)
    return getattr(node, "expr", None)


def _argument(args: tuple[Any, ...], options: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else options.get(name, default)
