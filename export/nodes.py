"""Nodes and initialisers under construction: the sheet that the pieces of a graph are written on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from streamer.errors import ModelError


class Graph:
    """Nodes and initialisers under construction; every method appends and returns the name of the value it made."""

    def __init__(self, prefix: str = "") -> None:
        """``prefix`` keeps the names apart from those of another graph that this one becomes a part of."""
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{self._prefix}{hint}_{self._count}"

    def inner(self) -> Graph:
        """The body of a Scan: nodes of its own, constants and names with the graph around it."""
        body = Graph()
        body.initializers, body._constants = self.initializers, self._constants
        body.name = self.name  # type: ignore[method-assign]
        return body

    def constant(self, value: Any, hint: str = "constant") -> str:
        """An initialiser; equal ones are shared."""
        array = np.ascontiguousarray(value)
        if array.shape != np.shape(value):  # ascontiguousarray makes scalars one-dimensional
            array = array.reshape(np.shape(value))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self.name(hint)
            self.initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def axes(self, *axes: int) -> str:
        return self.constant(np.array(axes, np.int64), "axes")

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        made = [self.name(operator.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, name=self.name(operator), **attributes))
        return made

    def op(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.add(operator, *inputs, **attributes)[0]

    def called(self, value: str, name: str) -> None:
        """Makes ``value`` the graph output ``name``: renamed where a node made it, else copied."""
        makers = [node for node in self.nodes if value in node.output]
        taken = any(name in node.output for node in self.nodes)
        if not makers or taken:
            self.nodes.append(helper.make_node("Identity", [value], [name], name=self.name("Identity")))
            return
        for node in self.nodes:
            node.input[:] = [name if each == value else each for each in node.input]
            node.output[:] = [name if each == value else each for each in node.output]

    def splice(self, model: onnx.ModelProto, value: str) -> str:
        """All of another model's graph, with its one input fed by ``value``; returns its one output."""
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        prefix = self.name("traced") + "."
        names = {model.graph.input[0].name: value, "": ""}

        def renamed(name: str) -> str:
            return names.get(name, prefix + name)

        for tensor in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = renamed(tensor.name)
            self.initializers[copy.name] = copy
        for node in model.graph.node:
            if any(
                attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for attribute in node.attribute
            ):
                raise ModelError(
                    f"the module's graph branches ({node.op_type}): encoder and head must be free of control flow"
                )
            step = onnx.NodeProto()
            step.CopyFrom(node)
            step.name = prefix + node.name
            step.input[:] = [renamed(name) for name in node.input]
            step.output[:] = [renamed(name) for name in node.output]
            self.nodes.append(step)
        return renamed(model.graph.output[0].name)
