"""M models of one shape as one: they take every step and every update together, and stay independent of each other.

Made for sequences of equal length in a batch, as the comparison's own tasks have them; a row may only end early where
its outputs from there on are not counted and its state is not used again (the rule of ``data.chunks``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamer.errors import ConfigurationError

from ..model import Forecaster, SequenceModel, build
from .recurrence import fused_lstm, recur

States = tuple[Tensor, ...]


class Stack:
    """The parameters of M models as one tensor ``theta`` [M, P], and their forward pass.

    Shapes: M models, B rows, T steps, L layers, D directions, H hidden, O outputs.
    """

    def __init__(self, models: Sequence[SequenceModel]) -> None:
        first = models[0]
        assert first.config is not None
        if first.config.dropout:
            raise ConfigurationError("models with dropout cannot be trained as one stack: set model.dropout to 0")
        self.config, self.shape = first.config, first
        self.names = [name for name, _ in first.named_parameters()]
        self.shapes = [parameter.shape for parameter in first.parameters()]
        flat = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
        self.theta = torch.stack(flat).requires_grad_()
        self.mean, self.std = (torch.stack([getattr(m, name) for m in models]) for name in ("mean", "std"))

    def __len__(self) -> int:
        return len(self.theta)

    def model(self, index: int, theta: Tensor | None = None) -> SequenceModel:
        """One of the models, with these parameters [P] (default: its own), in evaluation mode."""
        made = build(self.config)
        flat = (self.theta if theta is None else theta[None].expand(len(self), -1))[index].detach()
        sizes = [shape.numel() for shape in self.shapes]
        weights = {n: v.view(s) for n, v, s in zip(self.names, torch.split(flat, sizes), self.shapes, strict=True)}
        made.load_state_dict({**weights, "mean": self.mean[index], "std": self.std[index]}, strict=False)
        return made.eval()

    def keep(self, indices: Tensor) -> None:
        """Let all other models go."""
        self.theta = self.theta.detach()[indices].requires_grad_()
        self.mean, self.std = self.mean[indices], self.std[indices]

    def initial_states(self, rows: int) -> States:
        """Zero states [L*D, M, rows, H], h and, of an LSTM, c."""
        lanes = self.shape.layers * self.shape.directions
        return tuple(torch.zeros(lanes, len(self), rows, self.shape.state_width) for _ in self.shape.core_state_names)

    def scale(self, x: Tensor) -> Tensor:
        """Raw features [M,B,T,F] to standardised ones."""
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """x [M,B,T,F] -> the head's result [M,B,T,O] (or [M,B,O] with ``reduce``), and the next states."""
        parts = torch.split(self.theta, [shape.numel() for shape in self.shapes], dim=1)
        p = {n: v.view(-1, *s) for n, v, s in zip(self.names, parts, self.shapes, strict=True)}
        z = self.scale(x)
        e = self._embed(p["encoder.table.weight"], z) if self.config.vocabulary else z
        y, states = self._window(p, e, states) if self.config.kind == "mlp" else self._layers(p, e, states)
        output = self._head(p, self._reduce(y))
        if isinstance(self.shape, Forecaster) and self.shape.skip:
            output = output + z
        return output, states

    def _embed(self, table: Tensor, z: Tensor) -> Tensor:
        models, vocabulary, size = table.shape
        index = z[..., 0].to(torch.int64).clamp(0, vocabulary - 1)
        index = index + torch.arange(models)[:, None, None] * vocabulary
        return functional.embedding(index, table.reshape(models * vocabulary, size))

    def _window(self, p: dict[str, Tensor], e: Tensor, states: States) -> tuple[Tensor, States]:
        """The feed-forward core: one hidden layer over the last events."""
        models, rows, steps, width = e.shape
        window = self.config.window
        joined = torch.cat((states[0][0].view(models, rows, window - 1, width), e), dim=2)
        seen = joined.unfold(2, window, 1).transpose(3, 4).reshape(models, rows * steps, -1)
        y = _linear(seen, p["core.layer.weight"], p["core.layer.bias"]).relu().view(models, rows, steps, -1)
        return y, (joined[:, :, steps:].reshape(1, models, rows, -1),)

    def _layers(self, p: dict[str, Tensor], e: Tensor, states: States) -> tuple[Tensor, States]:
        """The recurrent core: [M,B,T,E] -> [M,B,T,D*H]."""
        ends: list[States] = []
        for layer in range(self.config.layers):
            found = []
            for direction in range(self.config.directions):
                name = f"_l{layer}{'_reverse' * direction}"
                x = e.flip(2) if direction else e
                weights = [p[f"core.{kind}{name}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                mine = tuple(state[len(ends)] for state in states)
                y, end = self._layer(x, weights, mine)
                found.append(y.flip(2) if direction else y)
                ends.append(end)
            e = torch.cat(found, dim=-1) if len(found) > 1 else found[0]
        return e, tuple(torch.stack(each) for each in zip(*ends, strict=True))

    def _layer(self, x: Tensor, weights: Sequence[Tensor], states: States) -> tuple[Tensor, States]:
        """One layer in one direction: [M,B,T,E] -> [M,B,T,H]."""
        if self.config.kind == "lstm":
            return fused_lstm(x, weights, *states)
        w, u, b, bias = weights
        gx = _linear(x.reshape(len(x), -1, x.shape[-1]), w, b).view(*x.shape[:3], -1).permute(2, 0, 1, 3)
        relu = self.config.nonlinearity == "relu"
        y, ends = recur(self.config.kind, gx, u.transpose(1, 2), bias.unsqueeze(1), states[0], relu=relu)
        return y.permute(1, 2, 0, 3), ends

    def _reduce(self, y: Tensor) -> Tensor:
        reduce, size = self.config.reduce, self.config.hidden
        if reduce is None:
            return y
        if reduce != "last":
            return y.mean(dim=2) if reduce == "mean" else y.amax(dim=2)
        if self.config.directions == 1:
            return y[:, :, -1]
        return torch.cat((y[:, :, -1, :size], y[:, :, 0, size:]), dim=-1)

    def _head(self, p: dict[str, Tensor], y: Tensor) -> Tensor:
        flat = y.reshape(len(y), -1, y.shape[-1])
        layers = [name for name in self.names if name.startswith("head.") and name.endswith("weight")]
        for index, name in enumerate(layers):
            flat = _linear(flat.relu() if index else flat, p[name], p[name.replace("weight", "bias")])
        return flat.view(*y.shape[:-1], -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [M,N,I], weight [M,O,I], bias [M,O] -> [M,N,O]."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def matrix_weights(model: SequenceModel) -> int:
    """Weights that every event is multiplied with; an embedding is a look-up, and a head after ``reduce`` runs once."""
    core = sum(int(p.numel()) for name, p in model.core.named_parameters() if "bias" not in name)
    head = 0 if model.head is None or model.reduce is not None else _linear_weights(model.head)
    return core + head


def _linear_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
