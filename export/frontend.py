"""Log-mel energies of sound, as a part of the model: nobody has to compute them in another language.

A frame of W samples, S of them later than the frame before, becomes M numbers: pre-emphasis ``y[n] = x[n] - a x[n-1]``
(``y[0] = (1 - a) x[0]``), Hamming window, discrete Fourier transform, power, M triangles of equal width on the mel scale
``mel(f) = 2595 log10(1 + f / 700)``, logarithm. This is what the HTK Book (Young et al. 2006, 5.2 to 5.4 and 5.6) calls
FBANK with USEPOWER, and Davis and Mermelstein (1980) came up with; without FFT's filling up to a power of two.

All up to the power is linear in the samples, so it is one matrix; no FFT is needed, and graphs have none that is fast.
Nothing looks ahead: a step's frames end with its last sample, and begin in the steps before it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamer.errors import ConfigurationError

from .bounds import Size
from .nodes import Graph

FLOOR = 1e-6
"""Added to every energy (samples are -1 to 1), so that silence has a logarithm: about what 16 bits round away."""

F64 = NDArray[np.float64]


class FrontEnd(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How samples become energies. A step of the model is one or several hops, the features of one step its samples."""

    rate_hz: Size = 8_000
    """Samples per second."""
    window: Size = 256
    """Samples of a frame."""
    hop: Size = 160
    """Samples from one frame to the next."""
    mels: Size = 24
    """Energies of a frame."""
    low_hz: float = 100.0
    """Where the lowest triangle begins."""
    high_hz: float = 0.0
    """Where the highest triangle ends; 0: at half the rate."""
    preemphasis: float = 0.97
    """Share of the previous sample that is taken away."""
    full_scale: float = 32_768.0
    """The largest sample: 32768 where they are whole numbers of 16 bits, 1 where they are -1 to 1."""

    @property
    def overlap(self) -> int:
        """Samples of a frame that came with the steps before."""
        return self.window - self.hop

    def problem(self, samples: int | None = None) -> str | None:
        """What means nothing, also for steps of so many samples; None if all can be used."""
        top = self.high_hz or self.rate_hz / 2
        if min(self.rate_hz, self.hop, self.mels) < 1 or self.window <= self.hop or self.full_scale <= 0:
            return "rate_hz, hop, mels and full_scale must be above 0, and window above hop"
        if not 0 <= self.low_hz < top <= self.rate_hz / 2 or not 0 <= self.preemphasis < 1:
            return "low_hz must be below high_hz, both within half of rate_hz, and preemphasis at least 0 and below 1"
        if samples is not None and (samples % self.hop or samples < self.overlap):
            return (
                f"a step has {samples} samples, which must be one or more hops of {self.hop}, and at least the"
                f" {self.overlap} that a frame shares with the step before"
            )
        if not (self.bank().sum(axis=0) > 0).all():
            return (
                f"mels is {self.mels}, but the lowest triangles fall between two frequencies: fewer, or a longer window"
            )
        return None

    def bank(self) -> F64:
        """[W / 2 + 1, M] weight of each frequency in each triangle."""

        def mel(hz: NDArray[Any]) -> F64:
            return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0), np.float64)

        at = mel(np.arange(self.window // 2 + 1) * (self.rate_hz / self.window))
        low, high = mel(np.array([self.low_hz, self.high_hz or self.rate_hz / 2]))
        centres = np.linspace(low, high, self.mels + 2)
        width = centres[1] - centres[0]
        weights: F64 = np.clip(1.0 - np.abs(at[:, None] - centres[None, 1:-1]) / width, 0.0, None)
        return weights

    def spectrum(self, bins: NDArray[np.int64]) -> F64:
        """[W, 2 K] samples of a frame to real and imaginary parts at K of the frequencies."""
        size = self.window
        emphasis = np.eye(size) - self.preemphasis * np.eye(size, k=1)
        emphasis[0, 0] = 1.0 - self.preemphasis
        angle = 2.0 * np.pi * np.outer(np.arange(size), bins) / size
        window = np.hamming(size)[:, None]
        parts: F64 = window * np.concatenate((np.cos(angle), -np.sin(angle)), axis=1)
        return np.asarray(emphasis @ parts, np.float64)


class LogMel(nn.Module):
    """x[..., O + F], the step's F samples and the O before them, to [..., frames * M]: scaled as training data was.

    Frequencies that no triangle has are never computed.
    """

    spectrum: Tensor
    bank: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: FrontEnd, samples: int) -> None:
        """``samples``: F. ConfigurationError: the two do not go together."""
        super().__init__()
        if (found := config.problem(samples)) is not None:
            raise ConfigurationError(f"front end: {found}")
        self.config, self.frames = config, samples // config.hop
        self.width = self.frames * config.mels
        bank = config.bank()
        bins = np.flatnonzero(bank.any(axis=1))
        # both parts are squared, weighed and summed by one product
        self.register_buffer("bank", torch.from_numpy(np.tile(bank[bins], (2, 1))).float())
        self.register_buffer("spectrum", torch.from_numpy(config.spectrum(bins)).float())
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("std", torch.ones(self.width))

    def energies(self, x: Tensor) -> Tensor:
        """The logarithms before they are scaled."""
        hop, size = self.config.hop, self.config.window
        frames = torch.stack([x[..., at * hop : at * hop + size] for at in range(self.frames)], dim=-2)
        parts = frames @ self.spectrum
        return torch.log((parts * parts) @ self.bank + FLOOR).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.energies(x) - self.mean) / self.std


def nodes(graph: Graph, module: LogMel, value: str) -> str:
    """value[B,T,O+F] to [B,T,frames*M], as ``LogMel`` does it."""
    hop, size = module.config.hop, module.config.window
    last = graph.axes(-1)
    pieces = []
    for at in range(module.frames):
        piece = graph.op("Slice", value, graph.axes(at * hop), graph.axes(at * hop + size), last)
        pieces.append(graph.op("Unsqueeze", piece, graph.axes(2)))
    frames = graph.op("Concat", *pieces, axis=2)
    parts = graph.op("MatMul", frames, graph.constant(module.spectrum.numpy(), "spectrum"))
    found = graph.op("MatMul", graph.op("Mul", parts, parts), graph.constant(module.bank.numpy(), "bank"))
    logged = graph.op("Log", graph.op("Add", found, graph.constant(np.float32(FLOOR), "floor")))
    flat = graph.op("Reshape", logged, graph.axes(0, 0, module.width))
    centred = graph.op("Sub", flat, graph.constant(module.mean.numpy(), "mean"))
    return graph.op("Div", centred, graph.constant(module.std.numpy(), "std"))
