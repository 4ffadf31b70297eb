"""Fitting real-valued vectors into a device's input range, and its answers back.

An encoding of a linear device is exact: ``decode(A encode(x)) = A x`` for every x, up to the device's own
noise and rounding.
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
    """Maps vectors into the input range of a device, and its answers back.

    Args:
        spec: of the device.

    Attributes:
        passes: device inputs that one vector takes.
        signed: takes vectors with negative entries.
    """

    passes: ClassVar[int] = 1
    signed: bool = True

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec

    @abstractmethod
    def encode(self, vectors: Tensor, amplitude: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Fit vectors into the input range.

        Args:
            vectors: (batch, in_features).
            amplitude: share of the range to use, one number or (batch, 1).

        Returns:
            Device inputs, (rows, in_features), and the factors that `decode` needs, (batch, 1).
        """

    @abstractmethod
    def decode(self, outputs: Tensor, factors: Tensor) -> Tensor:
        """Device outputs (..., rows, out_features) back to (..., batch, out_features)."""


class Scale(Encoding):
    """Scales each vector so that its largest magnitude fills the range; one pass a vector.

    On a linear device the scale is each vector's own. On a device that is not linear it is fixed instead,
    1.0 standing for the end of the range, and larger activations saturate: the device's curve must not move
    with the data. A range that starts at zero takes vectors without negative entries only.
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
                f"encoding 'scale' met a negative activation, which {self.spec.name!r} cannot take; "
                f"use encoding='differential'"
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
        """Undo the scale."""
        return outputs / factors


class Differential(Encoding):
    """Passes the positive and the negative part of each vector one after the other, and subtracts.

    For linear devices whose inputs cannot be negative, or whose range has an offset, which cancels. Two
    passes a vector.
    """

    passes = 2

    def __init__(self, spec: DeviceSpec) -> None:
        super().__init__(spec)
        if not spec.linear:
            raise ConfigurationError(
                f"encoding 'differential' needs a linear device, and {spec.name!r} is not; use 'scale'"
            )
        self._low, self._high = spec.input_range or (0.0, 1.0)

    def encode(self, vectors: Tensor, amplitude: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Positive parts, then negative parts: (2 batch, in_features)."""
        factors = (self._high - self._low) * amplitude / _peak(vectors)
        scaled = vectors * factors
        parts = torch.cat([scaled.clamp_min(0), (-scaled).clamp_min(0)])
        return parts + self._low, factors

    def decode(self, outputs: Tensor, factors: Tensor) -> Tensor:
        """The difference of the two passes, scaled back."""
        positive, negative = outputs.chunk(2, dim=-2)
        return (positive - negative) / factors


ENCODINGS: dict[str, type[Encoding]] = {"scale": Scale, "differential": Differential}
"""Every encoding by name."""


def choose_encoding(spec: DeviceSpec, name: str = "auto") -> Encoding:
    """The encoding of this name; ``"auto"`` takes the cheapest one that suits signed vectors.

    Raises:
        ConfigurationError: unknown name, or it does not suit the device.
    """
    if name == "auto":
        one_sided = spec.input_range is not None and spec.input_range[0] >= 0
        name = "differential" if one_sided and spec.linear else "scale"
    if name not in ENCODINGS:
        raise ConfigurationError(f"there is no encoding named {name!r}; known are auto, {', '.join(ENCODINGS)}")
    return ENCODINGS[name](spec)


def _peak(vectors: Tensor) -> Tensor:
    # Detached: for a linear device the scale cancels, and its gradient with it.
    peak = vectors.detach().abs().amax(dim=1, keepdim=True)
    # Nothing to scale, or too little to be scaled up without overflow.
    faint = peak < torch.finfo(peak.dtype).tiny * 1e6
    return torch.where(faint, torch.ones_like(peak), peak)
