"""One fabricated chip: what its seed has made different from the drawing."""

from __future__ import annotations

import torch
from torch import Tensor

from devices import Range, derive_generator

from .impairments import Impairments
from .physics import Physics

__all__ = ["Chip", "quantize"]


def quantize(values: Tensor, bounds: Range, levels: int | None) -> Tensor:
    """Saturate to a range and round to one of ``levels`` equally spaced codes over it.

    Args:
        values: any shape.
        bounds: lowest and highest code.
        levels: number of codes; None saturates only.
    """
    low, high = bounds
    if levels is None:
        return values.clamp(low, high)
    step = (high - low) / (levels - 1)
    codes = (values - low).div_(step).round_().clamp_(0, levels - 1)
    return codes.mul_(step).add_(low)


class Chip:
    """Turns controls as written into controls as they act on the light.

    Drawn once from the seed: actuator efficiency and offset, stuck and dead controls. Each has a stream of
    its own, so switching one impairment on leaves the others' values alone.

    Args:
        physics: the kind, for its layout and control range.
        impairments: how far a chip may be off.
        in_features: n.
        out_features: m.
        seed: which chip.
        device: torch device to keep the tables on.
    """

    def __init__(
        self,
        physics: Physics,
        impairments: Impairments,
        in_features: int,
        out_features: int,
        seed: int,
        device: torch.device,
    ) -> None:
        count = physics.num_controls(in_features, out_features)
        low, high = physics.control_range

        def normal(what: str, std: float) -> Tensor | None:
            generator = derive_generator(seed, "chip", what)
            draw = torch.randn(count, generator=generator, dtype=torch.float64)
            return (std * draw).to(device) if std else None

        def chosen(what: str, fraction: float) -> Tensor:
            # The rounded share exactly, so that two chips have equally many.
            generator = derive_generator(seed, "chip", what)
            order = torch.randperm(count, generator=generator)
            return order[: round(fraction * count)]

        self._gain = normal("gamma", impairments.gamma_std)
        self._bias = normal("phase bias", impairments.phase_bias_std)
        self._crosstalk = impairments.crosstalk
        layout = physics.layout(in_features, out_features)
        self._grid = tuple(layout.shape)
        occupied = layout.flatten() >= 0
        # A full grid in reading order needs no scatter.
        in_order = bool(occupied.all()) and torch.equal(layout.flatten(), torch.arange(count))
        self._places = None if in_order else occupied.nonzero()[layout.flatten()[occupied].argsort(), 0].to(device)
        fixed = torch.full((count,), float("nan"), dtype=torch.float64)
        stuck = chosen("stuck", impairments.stuck_fraction)
        levels = torch.rand(count, generator=derive_generator(seed, "chip", "stuck at"), dtype=torch.float64)
        fixed[stuck] = low + (high - low) * levels[stuck]
        fixed[chosen("dead", impairments.dead_fraction)] = low
        self.working = fixed.isnan().to(device)
        self._fixed = None if bool(self.working.all()) else fixed.nan_to_num().to(device)
        self._tables: dict[torch.dtype, tuple[Tensor | None, ...]] = {}

    def act(self, written: Tensor) -> Tensor:
        """What controls (..., num_controls) do on this chip, differentiably."""
        fixed, gain, bias = self._as(written.dtype)
        acting = written
        if fixed is not None:
            acting = torch.where(self.working, acting, fixed)
        if gain is not None:
            acting = acting + acting * gain
        if bias is not None:
            acting = acting + bias
        return self._leak(acting) if self._crosstalk else acting

    def _leak(self, acting: Tensor) -> Tensor:
        leading = acting.shape[:-1]
        if self._places is None:
            grid = acting.unflatten(-1, self._grid)
        else:
            empty = acting.new_zeros(*leading, self._grid[0] * self._grid[1])
            grid = empty.index_copy(-1, self._places, acting).unflatten(-1, self._grid)
        mixed = grid.clone()
        share = self._crosstalk * grid
        mixed[..., 1:, :] += share[..., :-1, :]
        mixed[..., :-1, :] += share[..., 1:, :]
        mixed[..., :, 1:] += share[..., :, :-1]
        mixed[..., :, :-1] += share[..., :, 1:]
        flat: Tensor = mixed.flatten(-2)
        return flat if self._places is None else flat.index_select(-1, self._places)

    def _as(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        if dtype not in self._tables:
            self._tables[dtype] = tuple(
                None if table is None else table.to(dtype) for table in (self._fixed, self._gain, self._bias)
            )
        return self._tables[dtype]
