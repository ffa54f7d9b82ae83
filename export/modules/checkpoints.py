"""Checkpoints of all the usual kinds become one plain float32 state dict that fits a module, or a sentence why not.

Nothing in a file is ever executed: torch's files are read with ``weights_only``, and safetensors hold numbers only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from streamer.errors import ConfigurationError, ModelError

WRAPPERS = ("weights", "state_dict", "model_state_dict", "model")
"""Keys under which a checkpoint of the usual kinds holds its state dict, tried in this order."""

_LISTED = 4
_COMPILED = re.compile(r"(^|\.)_orig_mod(?=\.)")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_FOLDED = (("_g", "_v"), ("original0", "original1"))

State = dict[str, Tensor]


def read_state(path: Path) -> tuple[State, list[str]]:
    """The state dict of a file, as float32 where it holds other floats, and what was converted, in sentences."""
    document = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    state, where = _unwrapped(document, path)
    converted, notes = _to_float32(state, path)
    return converted, [*([f"the weights were taken from {where} of {path.name}"] if where else []), *notes]


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - only these files need it
    except ModuleNotFoundError:
        raise ConfigurationError("safetensors is not installed: pip install 'streamer[export]'") from None
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError(f"no such file of weights: {path}") from None
    except Exception as error:  # what a foreign file provokes
        raise ModelError(f"{path} cannot be read as safetensors: {_one_line(error)}") from None


def _torch_file(path: Path) -> Any:
    try:
        # Training loops keep their best score and epoch as numpy scalars: plain numbers, which torch itself names safe.
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"no such file of weights: {path}") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder: name the file of weights in it") from None
    except Exception as error:  # what a foreign file provokes
        found = _GLOBAL.search(str(error)) or re.search(r"Trying to load unsupported GLOBAL ([\w.]+)", str(error))
        if found:
            raise ModelError(
                f"{path} holds a pickled {found[1]} beside or instead of tensors, which is not read because it could run"
                " foreign code: save module.state_dict() alone"
            ) from None
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript archive: save module.state_dict() with torch.save") from None
        raise ModelError(
            f"{path} cannot be read as weights ({_one_line(error)}): save module.state_dict() with torch.save,"
            " or as .safetensors"
        ) from None


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy number is made of. Numbers only: arrays and dtypes of objects stay refused."""
    numbers = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_)
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    # Files written with numpy 1 name the same function by its old place.
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *{type(np.dtype(number)) for number in numbers}]


def _unwrapped(document: Any, path: Path) -> tuple[dict[str, Any], str]:
    """The innermost dictionary of tensors, and under which keys it was found."""
    where: list[str] = []
    for _ in range(3):  # {"model": {"state_dict": ...}} is the deepest that is usual
        if not isinstance(document, Mapping):
            break
        if document and all(isinstance(value, Tensor) for value in document.values()):
            return dict(document), ".".join(where)
        key = next((key for key in WRAPPERS if isinstance(document.get(key), Mapping)), None)
        if key is None:
            break
        document, where = document[key], [*where, key]
    if isinstance(document, Mapping):
        strange = [str(key) for key, value in document.items() if not isinstance(value, Tensor)]
        if len(strange) < len(document):
            extra = [key for key in strange if not isinstance(document[key], str | int | float | list | dict)]
            if all(key.endswith("_extra_state") for key in strange) or not extra:
                kept = {str(key): value for key, value in document.items() if isinstance(value, Tensor)}
                return kept, ".".join(where)
        keys = ", ".join(repr(str(key)) for key in list(document)[:_LISTED]) or "nothing"
        raise ModelError(
            f"{path} holds no state dict (it holds {keys}): save module.state_dict(), alone or under one of"
            f" {', '.join(WRAPPERS)}"
        )
    raise ModelError(f"{path} holds a {type(document).__name__}, no state dict: save module.state_dict()")


def _to_float32(state: Mapping[str, Any], path: Path) -> tuple[State, list[str]]:
    converted: State = {}
    kinds: dict[str, int] = {}
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.is_complex() or tensor.layout is not torch.strided:
            raise ModelError(
                f"{path}: {name} is a {tensor.dtype} tensor ({tensor.layout}): only plain dense weights can be exported,"
                " save the module before it is quantised or made sparse"
            )
        kept = tensor.detach().cpu()
        if kept.is_floating_point() and kept.dtype != torch.float32:
            kind = str(kept.dtype).removeprefix("torch.")
            kinds[kind] = kinds.get(kind, 0) + 1
            wide, kept = kept, kept.to(torch.float32)
            if bool((torch.isfinite(wide) & ~torch.isfinite(kept)).any()):
                raise ModelError(f"{path}: {name} holds numbers that are too large for float32: retrain or rescale it")
        converted[name] = kept
    return converted, [
        f"{count} {kind} tensor{'s were' if count > 1 else ' was'} converted to float32"
        for kind, count in sorted(kinds.items())
    ]


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> list[str]:
    """Loads ``state`` into ``module``, folds its reparametrisations, and refuses what is not finite.

    Prefixes that wrappers put in front of names (DataParallel, torch.compile, Lightning) are taken off, and weight_norm
    in the file only, or in the module only, is folded. Returns what was done, in sentences. ModelError names the weights.
    """
    module.float().cpu()
    given, notes = dict(state), list[str]()
    expected = module.state_dict()
    if set(given) != set(expected):
        given, notes = _renamed(given, expected)
    if set(given) != set(expected):
        folded = fold_state(given)
        unfolded = fold(module)
        if unfolded or set(folded) != set(given):
            given, expected = folded, module.state_dict()
            notes.append("weight_norm was folded into plain weights")
    _compare(given, expected, source)
    try:
        module.load_state_dict(given)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"the weights do not fit what {source} makes: {_one_line(error)}") from None
    names = fold(module)
    if names:
        notes.append(f"parametrisations were folded into plain weights: {_some(names)}")
    _refuse_not_finite(module, source)
    return notes


def _renamed(state: State, expected: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Names without what wrappers put in front of them."""
    notes = []
    if any(_COMPILED.search(name) for name in state) and not any(_COMPILED.search(name) for name in expected):
        state = {_COMPILED.sub("", name).removeprefix("."): value for name, value in state.items()}
        notes.append("_orig_mod (torch.compile) was taken off the names")
    wanted = set(fold_names(expected))

    def fitting(prefix: str) -> int:
        inner = [name[len(prefix) :] for name in state if name.startswith(prefix)]
        return len(wanted & set(fold_names(inner)))

    prefixes = {name[: -len(want)] for name in fold_names(state) for want in wanted if name.endswith("." + want)}
    best = max(sorted(prefixes, key=lambda p: (p not in ("module.", "model."), len(p))), key=fitting, default="")
    if best and fitting(best) > fitting(""):
        left = [name for name in state if not name.startswith(best)]
        state = {name[len(best) :]: value for name, value in state.items() if name.startswith(best)}
        rest = f"; left out: {_some(left)}" if left else ""
        notes.append(f"the prefix {best!r} was taken off the names{rest}")
    return state, notes


def fold_names(names: Iterable[str]) -> list[str]:
    """Names of weights as they are called once parametrisations are folded."""
    return [re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", re.sub(r"_[gv]$", "", name)) for name in names]


def fold_state(state: State) -> State:
    """weight_norm's pairs, old (``weight_g``, ``weight_v``) and new (``parametrizations``), as the weight they make."""
    folded: State = {}
    for name, value in state.items():
        new = re.fullmatch(r"(.*?)parametrizations\.(\w+)\.original([01])", name)
        if new is not None:
            stem, role = f"{new[1]}{new[2]}", new[3]
            partner = name[:-1] + ("1" if role == "0" else "0")
        elif name.endswith(("_g", "_v")):
            stem, role = name[:-2], "0" if name.endswith("_g") else "1"
            partner = stem + ("_v" if role == "0" else "_g")
        else:
            folded[name] = value
            continue
        if partner not in state:
            folded[name] = value
        elif role == "0":
            folded[stem] = _weight_norm(value, state[partner])
    return folded


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """g * v / |v|, where the norm is over all axes along which g has one element."""
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    return g * v / torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else g * v / v.abs()


def fold(module: nn.Module) -> list[str]:
    """Makes plain parameters of parametrised ones (weight_norm, spectral_norm, one's own); returns their names."""
    names = []
    for place, each in list(module.named_modules()):
        dot = f"{place}." if place else ""
        if isinstance(each, parametrize.ParametrizationList):
            continue
        if parametrize.is_parametrized(each):
            for tensor in list(each.parametrizations):
                parametrize.remove_parametrizations(each, tensor, leave_parametrized=True)
                names.append(dot + tensor)
        for key, hook in list(each._forward_pre_hooks.items()):
            old = type(hook).__name__
            if old not in ("WeightNorm", "SpectralNorm"):
                continue
            with torch.no_grad():
                if old == "SpectralNorm":
                    hook(each, ())
            hook.remove(each)
            del each._forward_pre_hooks[key]
            names.append(dot + hook.name)
        if isinstance(each, nn.RNNBase) and names:
            each._flat_weights = [getattr(each, name) for name in each._flat_weights_names]
    return names


def _compare(given: Mapping[str, Tensor], expected: Mapping[str, Any], source: str) -> None:
    """Names and shapes, all differences in one sentence, each with the closest name on the other side."""
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {list(given[name].shape)} in the file and {list(value.shape)} in the module"
        for name, value in expected.items()
        if name in given and isinstance(value, Tensor) and given[name].shape != value.shape
    ]
    parts = []
    if missing:
        parts.append(f"missing in the file: {_some(missing, unexpected or list(given))}")
    if unexpected:
        parts.append(f"unknown to the module: {_some(unexpected, missing or list(expected))}")
    if shapes:
        more = f" and {len(shapes) - _LISTED} more" if len(shapes) > _LISTED else ""
        parts.append("of another shape: " + "; ".join(shapes[:_LISTED]) + more)
    if parts:
        raise ModelError(
            f"the weights do not fit what {source} makes ({'; '.join(parts)}): let the factory build the module with the"
            " sizes and names it was trained with"
        )


def _some(names: list[str], others: list[str] | None = None) -> str:
    """A few of the names, each with the closest of ``others``."""
    told = []
    for name in names[:_LISTED]:
        close = difflib.get_close_matches(name, others or [], n=1, cutoff=0.4)
        told.append(f"{name} (closest: {close[0]})" if close else name)
    return ", ".join(told) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _refuse_not_finite(module: nn.Module, source: str) -> None:
    """NaN anywhere, or infinity in a parameter: such a training has diverged. Buffers may mask with infinity."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        wrong = ~torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else torch.isnan(tensor)
        if bool(wrong.any()):
            raise ModelError(
                f"the weights of {source} are not finite ({name}: {int(wrong.sum())} of {tensor.numel()} values):"
                " the training has diverged, take an earlier checkpoint"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
