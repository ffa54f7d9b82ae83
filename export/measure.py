"""What a model costs: processor time, memory, size, speed in ONNX Runtime. Each is measured in a process of its own.

Times are processor time of one thread: what else the machine does meanwhile must not decide which cell is faster.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
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
from .comparison.stacked import matrix_weights
from .data import Split, buckets, chunks
from .graph import export_model, write
from .model import SequenceModel
from .tasks import chunk_loss, examples
from .train import TrainConfig, make_model

BATCHES = (1, 64, 256)
_WINDOW_STEPS = 32
_REPEATS = 30


def timed(
    configs: Mapping[str, TrainConfig], make: Callable[[int], Split], *, rounds: int, repeats: int = 3
) -> dict[str, dict[str, Any]]:
    """What each configuration costs, as ``figures`` below: in child processes, so that nothing else is measured.

    The times of all are taken in turn, ``rounds`` times: what disturbs a round disturbs all of them. Times are those of
    one training update on the task's own batch, and of one event in ONNX Runtime. Raises what the child raised.
    """
    split = make(0)
    found = {name: _in_child(partial(_sizes, config, split)) for name, config in configs.items()}
    times = _in_child(partial(_times, configs, split, rounds, repeats))
    return {name: {**figures, **times[name]} for name, figures in found.items()}


def machine() -> str:
    """Processor and core count, as far as the system tells."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name: the architecture has to do
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


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


def _in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``work`` (which must pickle) in a process of its own, or the error that it raised.

    The processes are forked from one that has only loaded this module: a copy of a process that has trained before has
    autograd's threads in its books but not in its hands, and PyTorch refuses to train there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, work))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = ConfigurationError("the process that measures ended without a result (out of memory?)")
    finally:
        child.join()
    if isinstance(found, Exception):
        raise found
    result: dict[str, Any] = found
    return result


def _child(sender: Connection, work: Callable[[], dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    try:
        sender.send(work())
    except (StreamerError, MemoryError) as error:
        sender.send(error)
    finally:
        sender.close()


class _Update:
    """One training update of a model on a batch of its task, again and again."""

    def __init__(self, config: TrainConfig, split: Split) -> None:
        torch.manual_seed(0)
        self.model, self.task = make_model(config, split.train), config.task
        sequences = examples(config.task, split.train, per_window=self.model.reduce is not None)
        rows, steps = config.training.rows, config.training.steps
        stepwise = self.model.mode == "step"
        self.batch = next(
            chunks(sequences, rows=rows, steps=steps) if stepwise else buckets(sequences, rows=rows, rng=None)
        )
        self.states = SequenceModel.initial_states(self.model, len(self.batch.lanes)) if stepwise else ()
        events = sum(len(example.x) for example in sequences)
        self.per_epoch = max(1.0, events / int(self.batch.lengths.sum()))
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def run(self) -> None:
        loss = chunk_loss(self.model, self.task, self.batch, self.states)
        self.optimiser.zero_grad(set_to_none=True)
        (loss.total / max(1, loss.count)).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def milliseconds(self, repeats: int, *, onednn: bool) -> float:
        """Least processor time of ``repeats`` updates: what the work takes when nothing gets in its way."""
        with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=onednn):
            self.run()
            taken = []
            for _ in range(repeats):
                started = process_time()
                self.run()
                taken.append(process_time() - started)
        return min(taken) * 1e3


def _sizes(config: TrainConfig, split: Split) -> dict[str, Any]:
    before = _reset_peak_bytes()
    update = _Update(config, split)
    for _ in range(3):
        update.run()
    peak, model = _peak_bytes() - before, update.model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_for_speed(model.eval(), path)
        size = path.stat().st_size
    return {
        "parameters": model.parameter_count,
        "flops_per_event": 2 * matrix_weights(model),
        "peak_memory_bytes": max(0, peak),
        "model_bytes": size,
        "state_bytes": sum(4 * state.numel() for state in model.initial_states(1)) if model.mode == "step" else 0,
        "updates_per_epoch": update.per_epoch,
    }


def _times(configs: Mapping[str, TrainConfig], split: Split, rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    updates = {name: _Update(config, split) for name, config in configs.items()}
    served = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, update in updates.items():
            path = Path(folder) / "model.onnx"
            update.model.eval()
            export_for_speed(update.model, path)
            update.model.train()
            served[name] = Model.load(path)
    found: dict[str, dict[str, Any]] = {
        name: {"update_ms": [], "update_ms_without_onednn": [], "onnx_us": {str(rows): [] for rows in BATCHES}}
        for name in configs
    }
    for _ in range(rounds):
        for name, update in updates.items():
            found[name]["update_ms"].append(update.milliseconds(repeats, onednn=True))
            found[name]["update_ms_without_onednn"].append(update.milliseconds(repeats, onednn=False))
            for rows, microseconds in microseconds_per_event(served[name]).items():
                found[name]["onnx_us"][rows].append(microseconds)
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
