"""Backpropagate through a differentiable model of the device."""

from __future__ import annotations

from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Differentiable, Session, pull_back
from .base import Estimator

__all__ = ["Exact", "Twin", "check_twin", "differentiable"]


def differentiable(session: Session) -> Differentiable:
    """Return the law of the device, which autograd can differentiate.

    Raises:
        ConfigurationError: the device has no differentiable law.
    """
    law = session.capability(Differentiable)
    if law is None:
        raise ConfigurationError(
            f"'exact' needs a device with a differentiable law, but {session.spec.name!r} has no "
            f"transfer(controls, inputs); use method='auto'"
        )
    return law


def check_twin(twin: object, spec: DeviceSpec) -> None:
    """Refuse an object that cannot be the twin of a device.

    Raises:
        ConfigurationError: the object is not differentiable, or its size differs from the device's.
    """
    if not isinstance(twin, Differentiable):
        found = "missing" if twin is None else f"a {type(twin).__name__}"
        raise ConfigurationError(
            f"'twin' needs a differentiable model of {spec.name!r}, an object with transfer(controls, inputs), but "
            f"twin is {found}; calibrate the device, or give a model as twin=..."
        )
    twin_spec = getattr(twin, "spec", None)
    if isinstance(twin_spec, DeviceSpec):
        for what in ("in_features", "out_features", "num_controls"):
            if getattr(twin_spec, what) != getattr(spec, what):
                raise ConfigurationError(
                    f"the twin has {what} = {getattr(twin_spec, what)}, but {spec.name!r} has {getattr(spec, what)}"
                )


class Twin(Estimator):
    """Backpropagate through a differentiable model of the device: physics-aware training.

    See Wright et al., Nature 601, 549 (2022). It costs no operation. It is as accurate as the model: on a mesh of
    interferometers, unknown phase offsets of only 0.1 rad already turn the gradient by 45 degrees or more. Give a less
    accurate model to a zero-order estimator as its ``twin`` instead.

    Args:
        twin: model with ``transfer(controls, inputs)``, such as a calibrated simulator, or an object that wraps a torch
            function.
        seed: unused; accepted because all estimators accept it.

    Attributes:
        shares: whether to compute the input gradient too, for a surrogate that calls `take`.
    """

    def __init__(self, *, twin: Differentiable | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._twin = twin
        self.shares = False
        self._shared: tuple[Tensor, Tensor, Tensor] | None = None

    def check(self, session: Session) -> None:
        """Refuse a missing twin, and a twin whose size differs from the device's."""
        super().check(session)
        check_twin(self._twin, session.spec)

    def law(self, session: Session) -> Differentiable:
        """Return the model of the device."""
        assert self._twin is not None
        return self._twin

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        grad_outputs: Tensor,
    ) -> Tensor:
        """Return the vector-Jacobian product of the model at the controls."""
        found, shared = pull_back(self.law(session), controls, inputs, grad_outputs, by_inputs=self.shares)
        assert found is not None
        self._shared = None if shared is None else (inputs, grad_outputs, shared)
        return found

    def take(self, inputs: Tensor, grad_outputs: Tensor) -> Tensor | None:
        """Return the input gradient of the last estimate; return None if it was computed for other tensors."""
        shared, self._shared = self._shared, None
        if shared is None or shared[0] is not inputs or shared[1] is not grad_outputs:
            return None
        return shared[2]


class Exact(Twin):
    """Backpropagate through the law of a `Differentiable` device; this costs no operation.

    Use it for tests and ablation studies: simulators and calibrated twins have a differentiable law, chips do not.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)

    def check(self, session: Session) -> None:
        """Refuse a device without a differentiable law."""
        self._twin = differentiable(session)
        super().check(session)

    def law(self, session: Session) -> Differentiable:
        """Return the law of the device."""
        return differentiable(session)
