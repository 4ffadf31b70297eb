"""Define the interface of estimators, and helpers that several of them use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Coupling, DeviceSpec, Session, derive_generator
from .steps import StepChoice

__all__ = ["Estimator", "directions_per_call", "sign_reach", "within"]

# Largest number of values in the perturbed settings, or in the answers, of one call: 64 MiB in float32.
_CHUNK = 1 << 24


class Estimator(ABC):
    """Estimate the gradient of the loss with respect to a device's controls, by operating the device.

    Args:
        seed: seed of the estimator's own random stream.

    Attributes:
        requires_linear: whether the estimator works on linear devices only.
        couplings: couplings that the estimator can use; None for all.
        measures_transfer_matrix: whether each estimate also sets `transfer_matrix`.
        transfer_matrix: A(w) at the controls of the last estimate, (out_features, in_features); None if it was not
            measured.
        step_choice: size of the perturbation of the last estimate, and the reason for it; None before the first
            estimate, and for estimators without perturbations.
        period: number of estimates after which the sequence of their costs repeats.
        staleness: error of measurements reused from earlier steps, above the noise, as a share of the outputs; None for
            estimators that reuse no measurements.
        gradient_energy: unbiased estimate of |g|^2, the squared norm of the true gradient, from the last estimate. The
            contributions of random directions and noise are subtracted, so it can be negative. None before the first
            estimate, and for estimators without random directions.
    """

    requires_linear: ClassVar[bool] = False
    couplings: ClassVar[tuple[Coupling, ...] | None] = None
    measures_transfer_matrix: ClassVar[bool] = False
    period: int = 1

    def __init__(self, *, seed: int = 0) -> None:
        self.generator = derive_generator(seed, "estimator")
        self.transfer_matrix: Tensor | None = None
        self.step_choice: StepChoice | None = None
        self.staleness: float | None = None
        self.gradient_energy: float | None = None

    @abstractmethod
    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        grad_outputs: Tensor,
    ) -> Tensor:
        """Estimate d loss / d controls.

        Args:
            session: session of the device; its controls may differ from ``controls`` before and after.
            controls: controls w, (num_controls,).
            inputs: inputs X of the forward pass, (batch, in_features).
            outputs: answer Y to the inputs at these controls, (batch, out_features).
            grad_outputs: gradient G = d loss / d Y, (batch, out_features).

        Returns:
            The gradient at w, (num_controls,).

        Raises:
            BudgetExceeded: the budget does not cover the whole estimate; nothing was spent.
        """

    def check(self, session: Session) -> None:
        """Refuse a device that this estimator cannot work on.

        Raises:
            ConfigurationError: the message gives the reason and an alternative.
        """
        spec = session.spec
        name = type(self).__name__.lower()
        if self.requires_linear and not spec.linear:
            raise ConfigurationError(
                f"estimator {name!r} works on linear devices only, but {spec.name!r} is not linear; use 'gaussian'"
            )
        if self.couplings is not None and spec.coupling not in self.couplings:
            raise ConfigurationError(
                f"estimator {name!r} needs {' or '.join(self.couplings)} coupling, but the coupling of "
                f"{spec.name!r} is {spec.coupling}; use 'gaussian'"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next estimate depends on."""
        step = self.step_choice
        return {
            "generator": self.generator.get_state(),
            "step": None if step is None else [step.size, step.bound],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.generator.set_state(state["generator"])
        self.step_choice = None if state["step"] is None else StepChoice(*state["step"])

    def _randn(self, count: int, like: Tensor) -> Tensor:
        # Drawn on the CPU, so that a run does not depend on the torch device.
        draw = torch.randn(count, len(like), generator=self.generator, dtype=like.dtype)
        return draw.to(like.device)

    def _signs(self, count: int, like: Tensor) -> Tensor:
        bits = torch.randint(0, 2, (count, len(like)), generator=self.generator, dtype=torch.int8)
        return bits.to(like.device, like.dtype).mul_(2).sub_(1)


def within(spec: DeviceSpec, controls: Tensor) -> Tensor:
    """Clamp controls to the control range."""
    return controls if spec.control_range is None else controls.clamp(*spec.control_range)


def sign_reach(below: Tensor, above: Tensor) -> Tensor:
    """Return the mean length of a step up and a step down, in steps, after clamping them to the range.

    Args:
        below: distance to the lower end of the range, in steps, at most 0.
        above: distance to the upper end of the range, in steps, at least 0.
    """
    return (above.clamp_max(1) - below.clamp_min(-1)) / 2


def directions_per_call(total: int, controls: int, answers: int) -> Generator[int]:
    """Split a number of perturbed settings into several calls, which limits the memory of each call.

    Args:
        total: number of settings.
        controls: number of values in one setting.
        answers: number of values in the answer to one setting.

    Yields:
        The number of settings of each call.
    """
    most = max(1, _CHUNK // max(controls, answers))
    for start in range(0, total, most):
        yield min(most, total - start)
