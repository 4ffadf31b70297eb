"""One fabricated chip: what its seed, or its calibration, has made different from the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import Constant, Range, derive_generator
from .impairments import Impairments
from .physics import Physics

__all__ = ["Chip", "fabricate", "quantize"]

Constants = Mapping[str, Tensor]


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
    lowest = low / step
    if lowest == round(lowest):  # zero is a code: two passes over the numbers fewer
        return (values / step).round_().clamp_(lowest, lowest + levels - 1).mul_(step)
    codes = (values - low).div_(step).round_().clamp_(0, levels - 1)
    return codes.mul_(step).add_(low)


class Chip:
    """The law of one chip: from controls as written and inputs as sent to what reaches the detectors' converters.

    Args:
        physics: the kind.
        in_features: n.
        out_features: m.
        full_scale: of the detectors, in output units.
        input_range: of the modulators, in input units.
        device: torch device to keep tables on.
    """

    def __init__(
        self,
        physics: Physics,
        in_features: int,
        out_features: int,
        full_scale: float,
        input_range: Range,
        device: torch.device,
    ) -> None:
        self.physics = physics
        self.in_features, self.out_features = in_features, out_features
        self.full_scale = full_scale
        self.magnitude = max(map(abs, input_range))
        self._device = device
        count = physics.num_controls(in_features, out_features)
        layout = physics.layout(in_features, out_features)
        self._grid = tuple(layout.shape)
        occupied = layout.flatten() >= 0
        # A full grid in reading order needs no scatter.
        in_order = bool(occupied.all()) and torch.equal(layout.flatten(), torch.arange(count))
        self._places = None if in_order else occupied.nonzero()[layout.flatten()[occupied].argsort(), 0].to(device)
        self.declared: dict[str, Constant] = {
            "phase_bias": Constant((count,), 0.0, 0.2, unit=physics.control_unit),
            "gamma": Constant((count,), 0.0, 0.05, low=-1.0),
            "crosstalk": Constant((), 0.0, 0.01, low=-0.2, high=0.2),
            "input_gain": Constant((in_features,), 1.0, 0.05),
            "input_offset": Constant((in_features,), 0.0, 0.02 * self.magnitude),
            "output_gain": Constant((out_features,), 1.0, 0.1),
            "output_offset": Constant((out_features,), 0.0, 0.02 * full_scale),
            **physics.constants(in_features, out_features),
        }
        self._own = physics.constants(in_features, out_features).keys()

    def act(self, written: Tensor, constants: Constants, fixed: Tensor | None = None) -> Tensor:
        """What controls (..., num_controls) do on this chip, differentiably.

        Args:
            written: by the converters.
            constants: of the chip; nominal where not given.
            fixed: what controls that do not move are held at, nan for those that do: (num_controls,).
        """
        if fixed is not None:
            written = torch.where(fixed.isnan(), written, fixed.nan_to_num())
        acting = self.physics.actuate(written)
        gamma, bias, crosstalk = (constants.get(name) for name in ("gamma", "phase_bias", "crosstalk"))
        if gamma is not None:
            acting = torch.addcmul(acting, acting, gamma)
        if bias is not None:
            acting = acting + bias
        return acting if crosstalk is None else self._leak(acting, crosstalk)

    def act_adjoint(self, grads: Tensor, written: Tensor, constants: Constants, fixed: Tensor | None = None) -> Tensor:
        """The way back through `act` at controls ``written``: (num_controls,), without a graph of it."""
        gamma, crosstalk = constants.get("gamma"), constants.get("crosstalk")
        if crosstalk is not None:
            grads = self._leak(grads, crosstalk)  # symmetric
        if gamma is not None:
            grads = torch.addcmul(grads, grads, gamma)
        with torch.enable_grad():
            leaf = written.detach().requires_grad_()
            acting = self.physics.actuate(leaf)
        if acting is not leaf:
            (grads,) = torch.autograd.grad(acting, leaf, grads)
        return grads if fixed is None else grads.where(fixed.isnan(), 0.0)

    def written_for(self, acting: Tensor, constants: Constants) -> Tensor:
        """The inverse of `act`, moved into the legal range: whole periods where the kind has them, else its ends."""
        wanted = acting
        crosstalk = constants.get("crosstalk")
        if crosstalk is not None:
            # (1 + cL)^-1 as a series: c times the four neighbours is far below one.
            for _ in range(8):
                wanted = acting - (self._leak(wanted, crosstalk) - wanted)
        if "phase_bias" in constants:
            wanted = wanted - constants["phase_bias"]
        if "gamma" in constants:
            wanted = wanted / (1 + constants["gamma"])
        period = self.physics.period
        low, high = self.physics.drive.range
        if period is None:
            return self.physics.written_for(wanted).clamp(low, high)
        ends = self.physics.actuate(wanted.new_tensor([low, high]))
        # Into the reach of the drive by whole periods; of a reach below a period, the nearer end.
        wrapped = ends[0] + torch.remainder(wanted - ends[0], period)
        beyond = wrapped > ends[1]
        nearer = torch.where(wrapped - ends[1] < ends[0] + period - wrapped, ends[1], ends[0])
        return self.physics.written_for(torch.where(beyond, nearer, wrapped)).clamp(low, high)

    def modulate(self, signals: Tensor, constants: Constants) -> Tensor:
        """What the modulators make of converted inputs (..., in_features)."""
        gain, offset = constants.get("input_gain"), constants.get("input_offset")
        if gain is None and offset is None:
            return signals
        if gain is not None:
            signals = signals * gain
        if offset is not None:
            signals = signals + offset
        return signals

    def detect(self, outputs: Tensor, constants: Constants) -> Tensor:
        """What the detectors make of the light at outputs (..., out_features)."""
        gain, offset = constants.get("output_gain"), constants.get("output_offset")
        if gain is not None:
            outputs = outputs * gain
        return outputs if offset is None else outputs + offset

    def modulate_adjoint(self, grads: Tensor, constants: Constants) -> Tensor:
        """The way back through `modulate`: (..., in_features)."""
        gain = constants.get("input_gain")
        return grads if gain is None else grads * gain

    def detect_adjoint(self, grads: Tensor, constants: Constants) -> Tensor:
        """The way back through `detect`: (..., out_features)."""
        gain = constants.get("output_gain")
        return grads if gain is None else grads * gain

    def kind(self, constants: Constants) -> Physics:
        """The kind's law with this chip's own constants in it."""
        return self.physics.holding({name: constants[name] for name in self._own if name in constants})

    def _leak(self, acting: Tensor, crosstalk: Tensor) -> Tensor:
        leading = acting.shape[:-1]
        if self._places is None:
            grid = acting.unflatten(-1, self._grid)
        else:
            empty = acting.new_zeros(*leading, self._grid[0] * self._grid[1])
            grid = empty.index_copy(-1, self._places, acting).unflatten(-1, self._grid)
        needs_graph = torch.is_grad_enabled() and (acting.requires_grad or crosstalk.requires_grad)
        mixed: Tensor = _Leak.apply(grid, crosstalk) if needs_graph else _leaked(grid, crosstalk)  # type: ignore[no-untyped-call]
        flat = mixed.flatten(-2)
        return flat if self._places is None else flat.index_select(-1, self._places)


class _Leak(torch.autograd.Function):
    """Adds a share of its four neighbours to each place of a grid: (1 + c L) x.

    L is symmetric, and so its own way back; autograd on the slices would take five times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grid: Tensor, crosstalk: Tensor) -> Tensor:
        return _leaked(grid, crosstalk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grid, crosstalk = ctx.saved_tensors
        wants_grid, wants_crosstalk = ctx.needs_input_grad
        back = _Leak.apply(grad, crosstalk) if wants_grid else None  # type: ignore[no-untyped-call]
        if not wants_crosstalk:
            return back, None
        around = _Leak.apply(grid, torch.ones_like(crosstalk)) - grid  # type: ignore[no-untyped-call]
        return back, (grad * around).sum().to(crosstalk)


def _leaked(grid: Tensor, crosstalk: Tensor) -> Tensor:
    share, mixed = crosstalk * grid, grid.clone()
    for dim in (-2, -1):
        most = grid.shape[dim] - 1
        # Not `mixed[...] += ...`, which copies the sum onto itself.
        mixed.narrow(dim, 1, most).add_(share.narrow(dim, 0, most))
        mixed.narrow(dim, 0, most).add_(share.narrow(dim, 1, most))
    return mixed


def fabricate(chip: Chip, impairments: Impairments, seed: int) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
    """Draw what makes one chip different from the drawing.

    Each kind of flaw has a stream of its own, so switching one impairment on leaves the others' values alone.

    Args:
        chip: the drawing.
        impairments: how far a chip may be off.
        seed: which chip.

    Returns:
        Constants, float64, without those that are nominal; what stuck and dead controls are held at, nan for all
        others, or None where all move; and which outputs see something, (out_features,).
    """
    physics = chip.physics
    count = physics.num_controls(chip.in_features, chip.out_features)

    def normal(what: str, shape: tuple[int, ...]) -> Tensor:
        generator = derive_generator(seed, "chip", what)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def chosen(what: str, fraction: float, among: int) -> Tensor:
        # The rounded share exactly, so that two chips have equally many.
        order = torch.randperm(among, generator=derive_generator(seed, "chip", what))
        return order[: round(fraction * among)]

    streams = {"phase_bias": "phase bias"}
    units = {"input_offset": chip.magnitude, "output_offset": chip.full_scale}
    constants: dict[str, Tensor] = {}
    for name, constant in chip.declared.items():
        std = getattr(impairments, f"{name}_std", 0.0) * units.get(name, 1.0)
        if std:
            constants[name] = constant.nominal + std * normal(streams.get(name, name), constant.shape)
    if impairments.crosstalk:
        constants["crosstalk"] = torch.tensor(impairments.crosstalk, dtype=torch.float64)
    if impairments.insertion_loss_db:
        gain = constants.get("output_gain", torch.ones(chip.out_features, dtype=torch.float64))
        constants["output_gain"] = gain * 10 ** (-impairments.insertion_loss_db / 20)

    low, high = physics.drive.range
    fixed = torch.full((count,), float("nan"), dtype=torch.float64)
    stuck = chosen("stuck", impairments.stuck_fraction, count)
    levels = torch.rand(count, generator=derive_generator(seed, "chip", "stuck at"), dtype=torch.float64)
    fixed[stuck] = low + (high - low) * levels[stuck]
    fixed[chosen("dead", impairments.dead_fraction, count)] = low
    seeing = torch.ones(chip.out_features, dtype=torch.bool)
    seeing[chosen("dead outputs", impairments.dead_output_fraction, chip.out_features)] = False
    return constants, None if bool(fixed.isnan().all()) else fixed, seeing
