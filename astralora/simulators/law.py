"""Compute the law of one chip from its constants."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..devices import Constant, Range
from .crosstalk import Crosstalk
from .physics import LinearPhysics, Physics

__all__ = ["ChipLaw", "Constants"]

Constants = Mapping[str, Tensor]
"""Constants of one chip by name; constants that are not given are nominal."""


class ChipLaw:
    """Compute the response of a chip of one kind, without noise and rounding, from its constants.

    Data flow: written controls -> `act` -> acting controls; sent inputs -> `modulate` -> physics at the acting
    controls -> `detect` -> outputs. Each stage is differentiable and accepts any leading axes. `act_adjoint`,
    `modulate_adjoint` and `detect_adjoint` compute gradients of these stages without a graph.

    Args:
        physics: law of the kind.
        in_features: number n of inputs.
        out_features: number m of outputs.
        full_scale: full scale of the detectors, in output units.
        input_range: range of the modulators, in input units.
        device: torch device that stores the tables.

    Attributes:
        declared: constants that may differ from chip to chip, by name.
        magnitude: largest absolute input, in input units.
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
        self.num_controls = count = physics.num_controls(in_features, out_features)
        self.full_scale = full_scale
        self.magnitude = max(map(abs, input_range))
        self.device = device
        self._crosstalk = Crosstalk(physics.layout(in_features, out_features), device)
        of_kind = physics.constants(in_features, out_features)
        self._names_of_kind = of_kind.keys()
        self.declared: dict[str, Constant] = {
            "phase_bias": Constant((count,), 0.0, 0.2, unit=physics.control_unit),
            "gamma": Constant((count,), 0.0, 0.05, low=-1.0),
            "crosstalk": Constant((), 0.0, 0.01, low=-0.2, high=0.2),
            "input_gain": Constant((in_features,), 1.0, 0.05),
            "input_offset": Constant((in_features,), 0.0, 0.02 * self.magnitude),
            "output_gain": Constant((out_features,), 1.0, 0.1),
            "output_offset": Constant((out_features,), 0.0, 0.02 * full_scale),
            **of_kind,
        }

    # -- controls ---------------------------------------------------------------------------

    def act(self, written: Tensor, constants: Constants, fixed: Tensor | None = None) -> Tensor:
        """Compute the acting controls from the written controls by drive, efficiency, offset and crosstalk.

        Args:
            written: quantized controls that the control converters output, (..., num_controls).
            constants: constants of the chip.
            fixed: written values of stuck controls, nan for controls that move: (num_controls,).

        Returns:
            Acting controls, which determine the physics, (..., num_controls), in the kind's ``control_unit``.
        """
        if fixed is not None:
            written = torch.where(fixed.isnan(), written, fixed.nan_to_num())
        acting = self.physics.actuate(written)
        gamma, bias, crosstalk = (constants.get(name) for name in ("gamma", "phase_bias", "crosstalk"))
        if gamma is not None:
            acting = torch.addcmul(acting, acting, gamma)
        if bias is not None:
            acting = acting + bias
        return acting if crosstalk is None else self._crosstalk.add(acting, crosstalk)

    def act_adjoint(self, grads: Tensor, written: Tensor, constants: Constants, fixed: Tensor | None = None) -> Tensor:
        """Apply the adjoint of the derivative of `act` at ``written``: (num_controls,) -> (num_controls,)."""
        gamma, crosstalk = constants.get("gamma"), constants.get("crosstalk")
        if crosstalk is not None:
            grads = self._crosstalk.add(grads, crosstalk)  # symmetric
        if gamma is not None:
            grads = torch.addcmul(grads, grads, gamma)
        with torch.enable_grad():
            leaf = written.detach().requires_grad_()
            acting = self.physics.actuate(leaf)
        if acting is not leaf:
            (grads,) = torch.autograd.grad(acting, leaf, grads)
        return grads if fixed is None else grads.where(fixed.isnan(), 0.0)

    def written_for(self, acting: Tensor, constants: Constants) -> Tensor:
        """Compute the written controls for given acting controls: invert `act`, then move them into the legal range.

        Controls of a periodic kind move by whole periods. Other controls are clamped to the ends of the range.

        Args:
            acting: acting controls, (..., num_controls).
            constants: constants of the chip.
        """
        wanted = acting
        crosstalk = constants.get("crosstalk")
        if crosstalk is not None:
            # (1 + c L)^-1 is computed as a series, which converges because 4 c is far below 1.
            for _ in range(8):
                wanted = acting - (self._crosstalk.add(wanted, crosstalk) - wanted)
        if "phase_bias" in constants:
            wanted = wanted - constants["phase_bias"]
        if "gamma" in constants:
            wanted = wanted / (1 + constants["gamma"])
        period = self.physics.period
        low, high = self.physics.drive.range
        if period is None:
            return self.physics.written_for(wanted).clamp(low, high)
        ends = self.physics.actuate(wanted.new_tensor([low, high]))
        # Move by whole periods into the range of the drive. If the range is shorter than a period, use the nearer end.
        wrapped = ends[0] + torch.remainder(wanted - ends[0], period)
        beyond = wrapped > ends[1]
        nearer = torch.where(wrapped - ends[1] < ends[0] + period - wrapped, ends[1], ends[0])
        return self.physics.written_for(torch.where(beyond, nearer, wrapped)).clamp(low, high)

    # -- signals ----------------------------------------------------------------------------

    def modulate(self, signals: Tensor, constants: Constants) -> Tensor:
        """Apply gains and offsets of the modulators to sent inputs, (..., in_features)."""
        gain, offset = constants.get("input_gain"), constants.get("input_offset")
        if gain is not None:
            signals = signals * gain
        return signals if offset is None else signals + offset

    def modulate_adjoint(self, grads: Tensor, constants: Constants) -> Tensor:
        """Apply the adjoint of `modulate` to gradients: (..., in_features) -> (..., in_features)."""
        gain = constants.get("input_gain")
        return grads if gain is None else grads * gain

    def detect(self, outputs: Tensor, constants: Constants) -> Tensor:
        """Apply gains and offsets of the detectors to the outputs of the physics, (..., out_features)."""
        gain, offset = constants.get("output_gain"), constants.get("output_offset")
        if gain is not None:
            outputs = outputs * gain
        return outputs if offset is None else outputs + offset

    def detect_adjoint(self, grads: Tensor, constants: Constants) -> Tensor:
        """Apply the adjoint of `detect` to gradients: (..., out_features) -> (..., out_features)."""
        gain = constants.get("output_gain")
        return grads if gain is None else grads * gain

    # -- physics ----------------------------------------------------------------------------

    def physics_with(self, constants: Constants) -> Physics:
        """Return a copy of the kind's law that uses the constants of this chip."""
        return self.physics.with_constants({name: constants[name] for name in self._names_of_kind if name in constants})

    def matrix(self, acting: Tensor, constants: Constants) -> Tensor:
        """Compute the transfer matrix of a linear kind: (..., num_controls) -> (..., out_features, in_features).

        The matrix does not contain the gains and offsets of modulators and detectors.
        """
        physics = self.physics_with(constants)
        assert isinstance(physics, LinearPhysics)
        return physics.matrix(acting, self.in_features, self.out_features)

    def answer(self, acting: Tensor, inputs: Tensor, constants: Constants) -> Tensor:
        """Compute the outputs at acting controls: (..., num_controls), (batch, n) -> (..., batch, m)."""
        signals = self.modulate(inputs, constants)
        return self.detect(self.physics_with(constants).transfer(acting, signals, self.out_features), constants)
