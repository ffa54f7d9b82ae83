"""What the adapter touches of the client beside its documented interface. Each name fails by name when the client changes."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.consumer import fetcher
from aiokafka.producer import message_accumulator, sender

from streamer.kafka.internals import BETWEEN_TRANSACTIONS_S, Consumer, Producer
from streamer.kafka.private import PRIVATE, USED

STREAMER = Path(__file__).resolve().parents[2] / "streamer"
INTERNALS = STREAMER / "kafka" / "internals.py"
MAY = tuple(STREAMER / "kafka" / f"{name}.py" for name in ("internals", "fetched", "received", "batches", "packed"))
"""The modules that touch private names of the client."""


def _class(where: str) -> type:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def _own_names(owner: type) -> set[str]:
    """Names that a class or its bases define: in the body, or as ``self.name`` in a method."""
    names: set[str] = set()
    package = owner.__module__.partition(".")[0]
    for each in (each for each in owner.__mro__ if each.__module__.partition(".")[0] == package):
        names |= set(vars(each))
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        names |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            if isinstance(node.ctx, ast.Store)
        }
    return names


@pytest.mark.parametrize(("where", "name", "parameters"), PRIVATE + USED, ids=lambda value: str(value) or "attribute")
def test_the_client_still_has(where: str, name: str, parameters: str) -> None:
    owner = _class(where)
    assert name in _own_names(owner), f"{where} has no {name} any more: see streamer/kafka/private.py"
    if parameters:
        signature = inspect.signature(getattr(owner, name))
        bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
        found = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
        assert str(found) == parameters, f"{where}.{name} takes other parameters"


def test_what_the_client_waits_between_two_transactions_is_still_recognised() -> None:
    assert sender.BACKOFF_OVERRIDE > BETWEEN_TRANSACTIONS_S


def _defined_here(tree: ast.Module) -> set[str]:
    """Private names that a module of ours defines itself."""
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    names |= {
        target.attr
        for node in ast.walk(tree)
        for target in (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in (target.elts if isinstance(target, ast.Tuple) else [target])
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }
    fields = (node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
    return names | {field.id for field in fields if isinstance(field, ast.Name)}


def _private(tree: ast.Module) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            yield node


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _modules() -> list[Path]:
    return sorted(path for path in STREAMER.rglob("*.py") if "aiokafka" in path.read_text())


def test_no_private_name_of_the_client_is_used_that_is_not_listed() -> None:
    """In the one module that may: whatever is private and not defined there. Elsewhere: nothing private of anything but self,
    and of self only what the module defines."""
    listed = {name for _, name, _ in PRIVATE}
    for path in _modules():
        tree = ast.parse(path.read_text())
        own = _defined_here(tree)
        for node in _private(tree):
            if path in MAY:
                assert node.attr in listed or node.attr in own, (
                    f"{path.name}:{node.lineno}: {node.attr} is not in PRIVATE"
                )
            else:
                assert _of_self(node), f"{path.name}:{node.lineno}: .{node.attr}: use streamer/kafka/internals.py"
                assert node.attr in own, f"{path.name}:{node.lineno}: self.{node.attr} is not defined there"


def test_every_listed_name_is_used() -> None:
    nodes = [node for path in MAY for node in ast.walk(ast.parse(path.read_text()))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.name for node in nodes if hasattr(node, "name")}
    assert {name for _, name, _ in PRIVATE} <= used


def test_no_global_of_the_client_is_assigned() -> None:
    for path in _modules():
        tree = ast.parse(path.read_text())
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
            targets = [*targets, *([node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else [])]
            for target in targets:
                root = target
                while isinstance(root, ast.Attribute | ast.Subscript):
                    root = root.value
                changed = isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported
                assert not changed, f"{path.name}:{node.lineno} changes what it imported"
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr"
            assert not called, f"{path.name}:{getattr(node, 'lineno', 0)}: setattr"


async def test_the_client_of_others_stays_as_it_is() -> None:
    """Beside ours, in the same process: stock classes, untouched."""
    ours = Producer(transactional_id="a", max_batch_size=20_000)
    stock = AIOKafkaProducer(transactional_id="b", max_batch_size=20_000)
    reading = Consumer(columns=True, request_timeout_ms=40_000)
    try:
        assert type(stock._sender) is sender.Sender
        assert type(stock._message_accumulator) is message_accumulator.MessageAccumulator
        assert type(ours._sender) is not sender.Sender
        assert sender.BACKOFF_OVERRIDE == 0.02
        assert sender.TxnOffsetCommitHandler.__module__ == sender.__name__
        assert message_accumulator.MessageBatch.__module__ == message_accumulator.__name__
        assert fetcher.PartitionRecords.__module__ == fetcher.__name__
        # what is ours behaves as the stock one was configured
        for name in ("_batch_size", "_compression_type", "_batch_ttl", "_linger_time"):
            assert getattr(ours._message_accumulator, name) == getattr(stock._message_accumulator, name), name
        for name in ("_acks", "_retry_backoff", "_request_timeout_ms"):
            assert getattr(ours._sender, name) == getattr(stock._sender, name), name
        assert isinstance(reading, AIOKafkaConsumer)
    finally:
        for client in (ours, stock, reading):
            await client.stop()
