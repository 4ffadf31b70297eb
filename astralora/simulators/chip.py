"""Compute the law of one fabricated chip, with its constants, stuck controls and dead outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..devices import pull_back_answer
from .fabrication import Flaws
from .law import ChipLaw, Constants
from .physics import LinearPhysics

__all__ = ["Chip"]

Drift = Callable[[Tensor], Tensor]
"""Function that adds the present drift to acting controls, (..., num_controls)."""


class Chip:
    """Compute the law of one fabricated chip with its constants, stuck controls and dead outputs.

    A `Chip` does not change with time; `astralora.simulators.state.ChipState` stores all that changes. Programs and
    queries call `act`, `modulate`, `transmit` and `detect` in this order. `transfer` is differentiable by autograd.

    Args:
        law: law of the kind.
        flaws: differences from the nominal chip.
        constants: constants of a known chip, in place of those in ``flaws``.
        fixed: values of stuck controls of a known chip, in place of those in ``flaws``.

    Attributes:
        law: law of the kind.
        constants: constants of the chip that are not nominal, float64.
        fixed: values of stuck and dead controls, nan for controls that move, (num_controls,); None if all move.

    Raises:
        ValueError: the kind does not have one of the constants, or a constant has the wrong shape.
    """

    def __init__(
        self, law: ChipLaw, flaws: Flaws, *, constants: Constants | None = None, fixed: Tensor | None = None
    ) -> None:
        self.law = law
        self.constants = flaws.constants if constants is None else _checked(law, constants)
        self.fixed = flaws.fixed if fixed is None else fixed.to(torch.float64)
        self._working = None if bool(flaws.working.all()) else flaws.working.to(law.device)
        self._tables: dict[torch.dtype, tuple[dict[str, Tensor], Tensor | None]] = {}

    @property
    def dead_outputs(self) -> Tensor:
        """Return the indices of the dead outputs, (dead outputs,), int64."""
        if self._working is None:
            return torch.empty(0, dtype=torch.int64, device=self.law.device)
        return (~self._working).nonzero()[:, 0]

    @property
    def uneven_modulators(self) -> bool:
        """Return whether the modulators differ from each other."""
        return "input_gain" in self.constants or "input_offset" in self.constants

    # -- stages of the signal path ----------------------------------------------------------

    def act(self, written: Tensor) -> Tensor:
        """Compute the acting controls from the written ones: (..., num_controls) -> (..., num_controls)."""
        constants, fixed = self._as(written.dtype)
        return self.law.act(written, constants, fixed)

    def modulate(self, signals: Tensor) -> Tensor:
        """Apply gains and offsets of the modulators: (..., in_features) -> (..., in_features)."""
        return self.law.modulate(signals, self._as(signals.dtype)[0])

    def response(self, acting: Tensor) -> Tensor:
        """Compute the second argument of `transmit` from acting controls, (..., num_controls).

        Returns:
            Transfer matrices, (..., out_features, in_features), for a linear kind; ``acting`` itself for other kinds.
        """
        if not isinstance(self.law.physics, LinearPhysics):
            return acting
        return self.law.matrix(acting, self._as(acting.dtype)[0])

    def transmit(self, signals: Tensor, response: Tensor) -> Tensor:
        """Pass modulated signals through the physics: (batch, in_features) -> (..., batch, out_features).

        Args:
            signals: signals behind the modulators.
            response: result of `response`.
        """
        if isinstance(self.law.physics, LinearPhysics):
            return signals @ response.mT
        physics = self.law.physics_with(self._as(signals.dtype)[0])
        return physics.transfer(response, signals, self.law.out_features)

    def detect(self, outputs: Tensor) -> Tensor:
        """Apply gains and offsets of the detectors, and zero dead outputs: (..., out_features)."""
        return self.mask(self.law.detect(outputs, self._as(outputs.dtype)[0]))

    def mask(self, outputs: Tensor) -> Tensor:
        """Zero the dead outputs: (..., out_features)."""
        return outputs if self._working is None else outputs * self._working.to(outputs.dtype)

    # -- differentiable functions -----------------------------------------------------------

    def answer(self, constants: Constants, acting: Tensor, inputs: Tensor) -> Tensor:
        """Compute the noiseless outputs of a chip with these constants and this chip's dead outputs.

        Args:
            constants: constants, in place of this chip's own.
            acting: acting controls, (..., num_controls).
            inputs: sent inputs, (batch, in_features).

        Returns:
            (..., batch, out_features).
        """
        return self.mask(self.law.answer(acting, inputs, constants))

    def transfer(self, controls: Tensor, inputs: Tensor, drift: Drift) -> Tensor:
        """Compute this chip's noiseless outputs, for autograd.

        Args:
            controls: written controls, (..., num_controls).
            inputs: (batch, in_features).
            drift: function that adds the present drift to acting controls.

        Returns:
            (..., batch, out_features).
        """
        constants, fixed = self._as(controls.dtype)
        return self.answer(constants, drift(self.law.act(controls, constants, fixed)), inputs)

    def vjp(
        self,
        controls: Tensor,
        inputs: Tensor,
        grad_outputs: Tensor,
        drift: Drift,
        *,
        by_controls: bool = True,
        by_inputs: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the vector-Jacobian product of `transfer`; see `astralora.devices.PullsBack`.

        For a linear kind, dL/dA = G^T X and dL/dX = G A do not need the outputs; autograd then differentiates A only.
        """
        if not isinstance(self.law.physics, LinearPhysics):
            return pull_back_answer(
                lambda w, x: self.transfer(w, x, drift),
                controls,
                inputs,
                grad_outputs,
                by_controls=by_controls,
                by_inputs=by_inputs,
            )
        written, signals = controls.detach(), inputs.detach()
        constants, fixed = self._as(written.dtype)
        acting = drift(self.law.act(written, constants, fixed))
        with torch.enable_grad():
            acting = acting.detach().requires_grad_(by_controls)
            matrix = self.law.matrix(acting, constants)
        grads = self.mask(self.law.detect_adjoint(grad_outputs, constants))
        by_control = by_input = None
        if by_controls:
            by_matrix = grads.mT @ self.law.modulate(signals, constants)
            (by_acting,) = torch.autograd.grad(matrix, acting, by_matrix)
            by_control = self.law.act_adjoint(by_acting, written, constants, fixed)
        if by_inputs:
            by_input = self.law.modulate_adjoint(grads @ matrix.detach(), constants)
        return by_control, by_input

    def _as(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None]:
        """Convert constants and fixed controls to a dtype, on the chip's torch device."""
        if dtype not in self._tables:
            constants = {name: value.to(self.law.device, dtype) for name, value in self.constants.items()}
            self._tables[dtype] = constants, None if self.fixed is None else self.fixed.to(self.law.device, dtype)
        return self._tables[dtype]


def _checked(law: ChipLaw, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind = law.physics.kind_name()
    for name, value in constants.items():
        if name not in law.declared:
            raise ValueError(f"{kind} has no constant {name!r}; known are {', '.join(law.declared)}")
        shape = law.declared[name].shape
        if tuple(value.shape) != shape:
            raise ValueError(f"the constant {name!r} of {kind} must have shape {shape}, but has {tuple(value.shape)}")
    return {name: value.to(torch.float64) for name, value in constants.items()}
