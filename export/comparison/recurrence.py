"""The recurrences of torch's cells for a stack of models at once, with their gradients written out.

Small recurrent networks spend their time in the overhead of each step. Here M models of one shape (other seeds, other
learning rates) take every step together, and the step is differentiated by hand, so that autograd keeps no record of it.
Only the LSTM needs none of that: on a CPU torch has a fused kernel for it, and for none of the others.
Gates are in torch's order. Shapes: T steps, M models, B rows, H hidden, G gates x H.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class _Plain(Function):
    """h = activation(gx + h U): y [T,M,B,H]."""

    @staticmethod
    def forward(ctx: Any, gx: Tensor, u: Tensor, h: Tensor, relu: bool) -> Tensor:
        hs = gx.new_empty(gx.shape[0] + 1, *h.shape)
        hs[0] = h
        bend = torch.relu_ if relu else torch.tanh_
        for x, before, after in zip(gx.unbind(), hs[:-1].unbind(), hs[1:].unbind(), strict=True):
            bend(torch.baddbmm(x, before, u, out=after))
        ctx.save_for_backward(hs, u)
        ctx.relu = relu
        return hs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hs, u = ctx.saved_tensors
        dy = gradients[0]
        slope = (hs[1:] > 0).to(dy) if ctx.relu else 1 - hs[1:].square()
        found, back = torch.empty_like(dy), u.transpose(1, 2).contiguous()
        dh = torch.zeros_like(hs[0])
        for out, dy_t, slope_t in _reversed(found, dy, slope):
            torch.mul(dh.add_(dy_t), slope_t, out=out)
            torch.bmm(out, back, out=dh)
        return found, _weight_gradient(hs[:-1], found), dh, None


class _Gru(Function):
    """r, z, n with n = tanh(gx_n + r (h U_n + b_n)): y [T,M,B,H]. ``bias`` [M,1,G] is the recurrent one."""

    @staticmethod
    def forward(ctx: Any, gx: Tensor, u: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        size, gates = h.shape[-1], torch.empty_like(gx)
        hs = gx.new_empty(gx.shape[0] + 1, *h.shape)
        from_h = torch.empty_like(gx)
        wide = bias.expand(-1, h.shape[1], -1).contiguous()
        hs[0] = h
        r, z, n = (part.unbind() for part in torch.split(gates, size, dim=-1))
        both, all_h = gates[..., : 2 * size].unbind(), hs.unbind()
        x_both, x_n = (part.unbind() for part in torch.split(gx, [2 * size, size], dim=-1))
        h_both, h_n = (part.unbind() for part in torch.split(from_h, [2 * size, size], dim=-1))
        for t, out in enumerate(from_h.unbind()):
            torch.baddbmm(wide, all_h[t], u, out=out)
            torch.add(x_both[t], h_both[t], out=both[t]).sigmoid_()
            torch.addcmul(x_n[t], r[t], h_n[t], out=n[t]).tanh_()
            torch.lerp(n[t], all_h[t], z[t], out=all_h[t + 1])
        ctx.save_for_backward(hs, gates, from_h[..., 2 * size :], u)
        return hs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        hs, gates, from_h, u = ctx.saved_tensors
        dy = gradients[0]
        size, back = hs.shape[-1], u.transpose(1, 2).contiguous()
        r, z, n = torch.split(gates, size, dim=-1)
        to_n = (1 - z) * (1 - n * n)
        # What dh is multiplied by for r, z and n (as the recurrent product sees it): all steps at once.
        by_h = torch.cat((to_n * from_h * r * (1 - r), (hs[:-1] - n) * z * (1 - z), to_n * r), dim=-1)
        found, dh = torch.empty_like(gates), torch.zeros_like(hs[0])
        kept = torch.empty_like(dy)
        three = _in_three(found)
        for out, out_h, kept_t, dy_t, by_h_t, z_t in _reversed(found, three, kept, dy, _in_three(by_h), z):
            torch.add(dh, dy_t, out=kept_t)
            torch.mul(by_h_t, kept_t.unsqueeze(-2), out=out_h)
            dh = torch.baddbmm(torch.mul(kept_t, z_t, out=dh), out, back)
        from_x = torch.cat((found[..., : 2 * size], kept * to_n), dim=-1)
        return from_x, _weight_gradient(hs[:-1], found), found.sum(dim=(0, 2)).unsqueeze(1), dh


def recur(
    kind: str, gx: Tensor, u: Tensor, bias: Tensor, h: Tensor, *, relu: bool = False
) -> tuple[Tensor, tuple[Tensor]]:
    """All steps of one layer: gx [T,M,B,G] (input times weights and its bias), u [M,H,G], recurrent bias [M,1,G].

    The state h is [M,B,H]. Returns y [T,M,B,H] and the state after the last step.
    """
    y = _Gru.apply(gx.contiguous(), u, bias, h) if kind == "gru" else _Plain.apply(gx + bias, u, h, relu)
    return y, (y[-1],)


def fused_lstm(x: Tensor, weights: Sequence[Tensor], h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The LSTM layer of each model in turn by torch's fused kernel, which is twice as fast as stacked steps would be.

    x [M,B,T,E], weights as nn.LSTM has them with a first axis M, states [M,B,H]; y [M,B,T,H] and the last states.
    """
    found = []
    for one, h_m, c_m, *mine in zip(x.unbind(), h.unbind(), c.unbind(), *(w.unbind() for w in weights), strict=True):
        found.append(torch.lstm(one, (h_m[None], c_m[None]), mine, True, 1, 0.0, True, False, True))
    ys, hs, cs = zip(*found, strict=True)
    return torch.stack(ys), (torch.cat(hs), torch.cat(cs))


def _in_three(x: Tensor) -> Tensor:
    """[..., 3 H] as [..., 3, H]."""
    return torch.unflatten(x, -1, (3, x.shape[-1] // 3))


def _reversed(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The steps of all these tensors together, from the last to the first; one call makes all views of a tensor."""
    return zip(*(reversed(part.unbind()) for part in parts), strict=True)


def _weight_gradient(h: Tensor, before: Tensor) -> Tensor:
    """Sum over steps and rows of h^T before: [M,H,G]."""
    steps, models, rows, _ = h.shape
    left = h.permute(1, 3, 0, 2).reshape(models, -1, steps * rows)
    return torch.bmm(left, before.transpose(0, 1).reshape(models, steps * rows, -1))
