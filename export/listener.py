"""A sequence model that hears samples: its steps overlap, so that the end of each is part of the next.

Shapes: B rows, T steps, F samples of a step, O samples that a frame shares with the step before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn

from streamer.core import F32

from .frontend import FrontEnd, LogMel
from .nodes import Graph
from .sequence import SequenceModel

_STATE = "overlap"


class Listener(SequenceModel):
    """``head(core(log_mel(samples)))``; a causal one has the state ``overlap`` [B, O] beside those of its core.

    What the state holds are samples, so a stream goes on bit by bit as if it had never been cut. Before the first
    sample there was silence.
    """

    encoder: LogMel

    def __init__(self, features: int, hidden: int, *, front: FrontEnd, **options: Any) -> None:
        """``features``: F. ConfigurationError for a front end that does not go with it."""
        encoder = LogMel(front, features)
        super().__init__(features, hidden, encoder=encoder, encoded=encoder.width, **options)
        self.overlap = front.overlap
        self.std.fill_(front.full_scale)

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*super().state_names, _STATE) if self.mode == "step" else ()

    def initial_states(self, rows: int) -> tuple[Tensor, ...]:
        return (*super().initial_states(rows), torch.zeros(rows, self.overlap, device=self.mean.device))

    def run_core(
        self, z: Tensor, lengths: Tensor | None, states: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As SequenceModel, over samples z[B,T,F] of -1 to 1."""
        initial = tuple(states) if states else self.initial_states(z.shape[0])
        tails = z[..., -self.overlap :]
        before = torch.cat((initial[-1][:, None], tails[:, :-1]), dim=1)
        y, nexts = super().run_core(torch.cat((before, z), dim=-1), lengths, initial[:-1])
        ends = torch.full((z.shape[0],), z.shape[1]) if lengths is None else lengths
        return y, (*nexts, tails[torch.arange(z.shape[0]), ends.to(torch.int64) - 1])

    def settle(self, xs: Iterable[F32]) -> None:
        """Energies are scaled to mean 0 and deviation 1 over these sources x[T,F]."""
        with torch.no_grad():
            rows = torch.cat([self._heard(torch.from_numpy(x)) for x in xs]).double()
            self.encoder.mean.copy_(rows.mean(dim=0))
            self.encoder.std.copy_(rows.std(dim=0).clamp(min=1e-3))

    def _heard(self, x: Tensor) -> Tensor:
        z = self.scale(x)
        before = nn.functional.pad(z[:-1, -self.overlap :], (0, 0, 1, 0))
        return self.encoder.energies(torch.cat((before, z), dim=-1))

    def state_fields(self) -> list[dict[str, Any]]:
        fields = super().state_fields()
        if self.mode == "step":
            overlap = {"input": _STATE, "output": f"{_STATE}_next", "shape": ["batch", self.overlap]}
            fields.append({**overlap, "initial": "zeros"})
        return fields


def overlapped(graph: Graph, module: Listener, z: str) -> tuple[str, str]:
    """z[B,T,F] to [B,T,O+F], every step with what came before it; and the next ``overlap`` [B,O]."""
    one, end = graph.axes(1), graph.axes(np.iinfo(np.int64).max)
    tails = graph.op("Slice", z, graph.axes(-module.overlap), end, graph.axes(2))
    if module.mode == "step":
        shifted = graph.op("Concat", graph.op("Unsqueeze", _STATE, one), tails, axis=1)
    else:
        shifted = graph.op("Pad", tails, graph.axes(0, 1, 0, 0, 0, 0), graph.constant(np.float32(0)))
    before = graph.op("Slice", shifted, graph.axes(0), graph.axes(-1), one)
    index = graph.op("Sub", graph.op("Cast", "lengths", to=TensorProto.INT64), graph.constant(np.int64(1)))
    last = graph.op("GatherND", tails, graph.op("Unsqueeze", index, one), batch_dims=1)
    return graph.op("Concat", before, z, axis=2), last
