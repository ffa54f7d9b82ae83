"""One trained model's figures: time, memory, size, speed in ONNX Runtime. Each is measured in a process of its own.

Times are processor time of one thread: what else the machine does meanwhile must not decide which cell is faster.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import onnx
import torch
import torch._dynamo  # torch loads it with the first optimiser: once here, not in every child and its figures
from onnx import TensorProto, helper

from streamer.errors import ConfigurationError, StreamerError
from streamer.modelfile.contract import Contract
from streamer.modelfile.model import Model

from . import emit
from .data import Split
from .graph import export_model, write
from .model import SequenceModel
from .train import TrainConfig, train_seed

BATCHES = (1, 64, 256)
_WINDOW_STEPS = 32
_REPEATS = 30


def trained_figures(config: TrainConfig, make: Callable[[int], Split], seed: int, *, speed: bool) -> dict[str, Any]:
    """Train in a child process; ``speed``: export and time the model too. Raises what the training raised."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, config, make, seed, speed))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = ConfigurationError(f"the process that trained {config.name} ended without a result (out of memory?)")
    finally:
        child.join()
    if isinstance(found, Exception):
        raise found
    result: dict[str, Any] = found
    return result


def microseconds_per_event(model: Model) -> dict[str, float]:
    """Median processor time of one event in ONNX Runtime, by rows per call: single steps, or windows of 32 steps."""
    steps = 1 if model.contract.mode == "step" else _WINDOW_STEPS
    random = np.random.default_rng(0)
    found = {}
    for rows in BATCHES:
        x = random.random((rows, steps, model.contract.features), dtype=np.float32)
        lengths = np.full(rows, steps, np.int32)
        states = model.initial_states(rows)
        model.run(x, lengths, states)
        times = []
        for _ in range(_REPEATS):
            started = process_time()
            model.run(x, lengths, states)
            times.append(process_time() - started)
        found[str(rows)] = statistics.median(times) / (rows * steps) * 1e6
    return found


def export_for_speed(model: SequenceModel, path: Path) -> None:
    """The file whose size and speed are reported; a feed-forward model becomes a step with its window as state."""
    if model.kind == "mlp":
        write_window_step(model, path)
    else:
        export_model(model, path, name="compared", features=None)


def write_window_step(model: SequenceModel, path: Path) -> None:
    """A feed-forward model as one step: x[B,F] and the events before it -> the head's result and the events to keep."""
    graph, core = emit.Graph(), model.core
    z = emit.affine(graph, "x", subtract=model.mean, divide=model.std)
    e = emit.per_step(graph, model.encoder, z, model.features)
    joined = graph.op("Concat", graph.op("Squeeze", "h", graph.axes(0)), e, axis=1)
    y = graph.op("Relu", emit.per_step(graph, core.layer, joined, core.window * core.encoded))
    kept = graph.op("Slice", joined, graph.axes(core.encoded), graph.axes(np.iinfo(np.int64).max), graph.axes(1))
    graph.called(emit.per_step(graph, model.head, y, model.hidden), "y")
    graph.called(graph.op("Unsqueeze", kept, graph.axes(0)), "h_next")
    state: list[str | int | None] = [1, "batch", model.state_width]
    fields = {
        "name": "compared",
        "mode": "step",
        "input": {"name": "x", "shape": ["batch", model.features]},
        "states": [{"input": "h", "output": "h_next", "shape": state}],
        "outputs": [{"name": "y", "shape": ["batch", model.width], "kind": "vector"}],
    }
    shapes: dict[str, list[str | int | None]] = {
        "x": ["batch", model.features],
        "h": state,
        "y": ["batch", model.width],
        "h_next": state,
    }
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    made = helper.make_graph(
        graph.nodes,
        "compared",
        [values["x"], values["h"]],
        [values["y"], values["h_next"]],
        list(graph.initializers.values()),
    )
    document: onnx.ModelProto = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", emit.OPSET)], ir_version=emit.IR_VERSION
    )
    write(document, Contract.from_fields(fields, source="the comparison"), path)


def _child(sender: Connection, config: TrainConfig, make: Callable[[int], Split], seed: int, speed: bool) -> None:
    try:
        sender.send(_figures(config, make, seed, speed))
    except (StreamerError, MemoryError) as error:
        sender.send(error)
    finally:
        sender.close()


def _figures(config: TrainConfig, make: Callable[[int], Split], seed: int, speed: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    split = make(seed)
    before, started = _reset_peak_bytes(), process_time()
    trained = train_seed(config, split, seed, out=None)
    seconds, peak = process_time() - started, _peak_bytes() - before
    test = trained.figures["test"]
    found: dict[str, Any] = {
        "score": test["loss"],
        "baseline": test["baseline_loss"],
        "parameters": trained.model.parameter_count,
        "seconds_per_epoch": seconds / len(trained.history.epochs),
        "peak_memory_bytes": max(0, peak),
        "state_bytes": sum(4 * state.numel() for state in trained.model.initial_states(1))
        if trained.model.mode == "step"
        else 0,
        "figures": test,
    }
    if speed:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_for_speed(trained.model, path)
            found["model_bytes"] = path.stat().st_size
            found["microseconds_per_event"] = microseconds_per_event(Model.load(path))
    return found


def _reset_peak_bytes() -> int:
    """Forget the peak so far (Linux); the resident size now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status_bytes("VmHWM")  # not allowed here: what is reported is then growth beyond the earlier peak
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0  # not Linux: memory is reported as 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
