"""Encode real-valued vectors as inputs within the range of a device, and decode its answers.

On a linear device an encoding is exact: ``decode(A encode(x)) = A x`` for every x, except for noise and rounding of the
device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec

__all__ = ["ENCODINGS", "Differential", "Encoding", "Scale", "choose_encoding"]


class Encoding(ABC):
    """Map vectors to inputs within the range of a device, and map its answers to the answers to these vectors.

    Args:
        spec: spec of the device.

    Attributes:
        passes: number of device inputs for one vector.
        signed: whether vectors may have negative entries.
    """

    passes: ClassVar[int] = 1
    signed: bool = True

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec

    @abstractmethod
    def encode(self, vectors: Tensor, amplitude: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Map vectors into the input range.

        Args:
            vectors: (batch, in_features).
            amplitude: share of the range to use, a number or (batch, 1).

        Returns:
            Device inputs, (rows, in_features), and factors for `decode`, (batch, 1).
        """

    @abstractmethod
    def decode(self, outputs: Tensor, factors: Tensor) -> Tensor:
        """Compute the answers to the vectors, (..., batch, out_features), from outputs, (..., rows, out_features)."""


class Scale(Encoding):
    """Scale each vector so that its largest magnitude fills the range; one pass for each vector.

    On a linear device each vector has its own scale. On a device that is not linear the scale is fixed, because the
    response must not depend on the scale of the data: 1.0 is the end of the range, and larger activations saturate. If
    the range starts at zero, vectors must not have negative entries.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        super().__init__(spec)
        self._limit = 1.0
        if spec.input_range is not None:
            low, high = spec.input_range
            self.signed = low < 0
            self._limit = min(-low, high) if self.signed else high
            if low > 0 or high <= 0:
                raise ConfigurationError(
                    f"encoding 'scale' needs an input range that includes zero, but {spec.name!r} has "
                    f"{low:g} to {high:g}; use encoding='differential'"
                )

    def encode(self, vectors: Tensor, amplitude: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Scale each vector into the range."""
        if not self.signed and vectors.numel() and bool(vectors.detach().min() < 0):
            raise ConfigurationError(
                f"encoding 'scale' cannot encode a negative activation, because the inputs of {self.spec.name!r} "
                f"cannot be negative; use encoding='differential'"
            )
        if self.spec.input_range is None:
            factors = vectors.new_ones(len(vectors), 1) * amplitude
            return vectors * factors, factors
        if not self.spec.linear:
            factors = vectors.new_full((len(vectors), 1), self._limit) * amplitude
            return (vectors * factors).clamp(*self.spec.input_range), factors
        factors = self._limit * amplitude / _peak(vectors)
        return vectors * factors, factors

    def decode(self, outputs: Tensor, factors: Tensor) -> Tensor:
        """Divide the outputs by the scale."""
        return outputs / factors


class Differential(Encoding):
    """Send the positive and the negative part of each vector one after the other, and subtract the answers.

    Use it for linear devices whose inputs cannot be negative, or whose range has an offset; the offset cancels. It
    needs two passes for each vector.
    """

    passes = 2

    def __init__(self, spec: DeviceSpec) -> None:
        super().__init__(spec)
        if not spec.linear:
            raise ConfigurationError(
                f"encoding 'differential' needs a linear device, but {spec.name!r} is not linear; use 'scale'"
            )
        self._low, self._high = spec.input_range or (0.0, 1.0)

    def encode(self, vectors: Tensor, amplitude: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the positive parts of all vectors, then the negative parts, (2 batch, in_features)."""
        factors = (self._high - self._low) * amplitude / _peak(vectors)
        scaled = vectors * factors
        parts = torch.cat([scaled.clamp_min(0), (-scaled).clamp_min(0)])
        return parts + self._low, factors

    def decode(self, outputs: Tensor, factors: Tensor) -> Tensor:
        """Return the difference of the two passes, divided by the scale."""
        positive, negative = outputs.chunk(2, dim=-2)
        return (positive - negative) / factors


ENCODINGS: dict[str, type[Encoding]] = {"scale": Scale, "differential": Differential}
"""All encodings by name."""


def choose_encoding(spec: DeviceSpec, name: str = "auto") -> Encoding:
    """Return the encoding of this name; ``"auto"`` chooses the cheapest encoding for signed vectors.

    Raises:
        ConfigurationError: the name is unknown, or the encoding does not suit the device.
    """
    if name == "auto":
        one_sided = spec.input_range is not None and spec.input_range[0] >= 0
        name = "differential" if one_sided and spec.linear else "scale"
    if name not in ENCODINGS:
        raise ConfigurationError(f"there is no encoding named {name!r}; known are auto, {', '.join(ENCODINGS)}")
    return ENCODINGS[name](spec)


def _peak(vectors: Tensor) -> Tensor:
    # Detached, because the scale of a linear device cancels, so its gradient is zero.
    peak = vectors.detach().abs().amax(dim=1, keepdim=True)
    # The peak is zero, or so small that scaling would overflow.
    tiny_peak = peak < torch.finfo(peak.dtype).tiny * 1e6
    return torch.where(tiny_peak, torch.ones_like(peak), peak)
