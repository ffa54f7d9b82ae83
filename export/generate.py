"""Rolling a causal model forward: what it gives becomes what it is given next."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .model import SequenceModel

Pick = Callable[[Tensor], Tensor]


def sampled(seed: int = 0) -> Pick:
    """Draws one class by its probability; the same seed draws the same."""
    generator = torch.Generator().manual_seed(seed)
    return lambda y: torch.multinomial(y, 1, generator=generator)[0]


def sampled_set(seed: int = 0) -> Pick:
    """Draws every feature (0 or 1) by its own probability."""
    generator = torch.Generator().manual_seed(seed)
    return lambda y: torch.bernoulli(y, generator=generator)


def rollout(
    model: SequenceModel,
    prompt: ArrayLike,
    steps: int,
    pick: Pick,
    encode: Callable[[Tensor], Tensor],
    output: str | None = None,
) -> list[Tensor]:
    """Run the prompt [T, F], then ``steps`` times: pick from the last output [O], encode it as the next event [F]."""
    picked: list[Tensor] = []
    with torch.no_grad():
        outputs, states = model(torch.from_numpy(np.asarray(prompt, np.float32))[None])
        for _ in range(steps):
            picked.append(pick(outputs[output or model.output][0, -1]))
            outputs, states = model(encode(picked[-1]).to(torch.float32).reshape(1, 1, -1), None, *states)
    return picked
