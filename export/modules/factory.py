"""PACKAGE.MODULE:FACTORY becomes a module with its weights, or one sentence with the place and the remedy."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from streamer.errors import ModelError

from .checkpoints import load_into


def build_module(factory: str, weights: Mapping[str, Any], notes: list[str] | None = None) -> nn.Module:
    """What the factory returns, with a state dict loaded and folded, in evaluation mode. ModelError if that fails.

    ``notes`` is given what was done to make the weights fit.
    """
    module = make(factory)
    done = load_into(module, weights, factory)
    if notes is not None:
        notes += done
    return module.eval()


def make(factory: str) -> nn.Module:
    """Calls the factory. Whatever it prints goes to stderr: stdout is for data."""
    package, _, attribute = factory.partition(":")
    if not package or not attribute or "/" in factory or package.endswith(".py"):
        hint = package.removesuffix(".py").strip("./").replace("/", ".")
        raise ModelError(
            f"{factory!r} names no factory: write PACKAGE.MODULE:FACTORY, a callable that returns the module"
            + (f", such as {hint}:{attribute or 'make'}" if "/" in factory or package.endswith(".py") else "")
        )
    with redirect_stdout(sys.stderr):
        found: Any = _imported(package, factory)
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise ModelError(_missing(factory, found, part))
            found = getattr(found, part)
        made = found if isinstance(found, nn.Module) else _called(factory, found)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"the factory {factory} returned a {type(made).__name__}, not a torch.nn.Module: let it return the module"
        )
    return made


def _imported(package: str, factory: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's package is usually where the command is given
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and (package == error.name or package.startswith(error.name + ".")):
            raise ModelError(
                f"the factory {factory} cannot be imported: there is no module {error.name!r} here"
                f" ({os.getcwd()}) nor installed: give the command where it lies, or set PYTHONPATH"
            ) from None
        raise ModelError(
            f"the factory {factory} cannot be imported: {package} needs {error.name!r}{place(error)}: install it"
        ) from None
    except (Exception, SystemExit) as error:  # whatever a foreign module does when it is imported
        raise ModelError(
            f"the factory {factory} cannot be imported: {told(error)}: correct it, and let importing it do nothing else"
        ) from None


def _missing(factory: str, found: Any, part: str) -> str:
    there = [
        name
        for name, value in vars(found).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == found.__name__
    ]
    listed = f"; it has {', '.join(sorted(there)[:8])}" if there else ""
    return f"the factory {factory} cannot be imported: {getattr(found, '__name__', found)} has no {part!r}{listed}"


def _called(factory: str, found: Any) -> Any:
    if not callable(found):
        raise ModelError(f"{factory} is a {type(found).__name__}, no callable that returns the module")
    try:
        inspect.signature(found).bind()
    except TypeError:
        needed = [
            p.name
            for p in inspect.signature(found).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        name = factory.partition(":")[2]
        raise ModelError(
            f"{factory} needs the arguments {', '.join(needed)}: write a function without arguments that returns it,"
            f" def make(): return {name}({', '.join(each + '=...' for each in needed)}), and name that"
        ) from None
    except ValueError:
        pass  # a callable without a signature is simply tried
    try:
        with torch.random.fork_rng(devices=[]):
            return found()
    except (Exception, SystemExit) as error:  # whatever a foreign factory raises
        raise ModelError(f"the factory {factory} failed: {told(error)}: correct it") from None


def told(error: BaseException) -> str:
    """Kind, text and place of an error in foreign code, on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{f' ({text})' if text else ''}{place(error)}"


def place(error: BaseException) -> str:
    """Where in the user's own files an error arose: the last frame outside of torch, this package and the library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {os.path.basename(error.filename)}, line {error.lineno}"
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    foreign = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, os.path.dirname(torch.__file__), "<"))
        and os.path.dirname(os.__file__) not in os.path.dirname(frame.filename)
    ]
    return f" in {os.path.basename(foreign[-1].filename)}, line {foreign[-1].lineno}" if foreign else ""
