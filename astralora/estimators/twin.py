"""Backpropagation through a differentiable model of the device."""

from __future__ import annotations

from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Differentiable, Session, pull_back
from .base import Estimator

__all__ = ["Exact", "Twin", "check_twin", "differentiable"]


def differentiable(session: Session) -> Differentiable:
    """The device itself as a torch function that autograd can follow.

    Raises:
        ConfigurationError: it is none.
    """
    law = session.capability(Differentiable)
    if law is None:
        raise ConfigurationError(
            f"'exact' needs a device whose law autograd can follow, and {session.spec.name!r} has no "
            f"transfer(controls, inputs); use method='auto'"
        )
    return law


def check_twin(twin: object, spec: DeviceSpec) -> None:
    """Refuse what cannot be the twin of a device.

    Raises:
        ConfigurationError: it is not differentiable, or of another size.
    """
    if not isinstance(twin, Differentiable):
        what = "nothing" if twin is None else f"a {type(twin).__name__}"
        raise ConfigurationError(
            f"'twin' needs a differentiable model of {spec.name!r}, an object with transfer(controls, inputs): "
            f"calibrate the device, or give one as twin=..., which is {what} now"
        )
    theirs = getattr(twin, "spec", None)
    if isinstance(theirs, DeviceSpec):
        for what in ("in_features", "out_features", "num_controls"):
            if getattr(theirs, what) != getattr(spec, what):
                raise ConfigurationError(
                    f"the twin has {what} = {getattr(theirs, what)}, but {spec.name!r} has {getattr(spec, what)}"
                )


class Twin(Estimator):
    """Physics-aware training: forward through the device, backward through a differentiable model of it.

    Wright et al., Nature 601, 549 (2022). Costs no operation; as good as the model is: on a mesh of interferometers,
    unknown phase offsets of a tenth of a radian already turn the gradient by half a right angle or more. Where a model
    is not to be trusted that far, give it to a zero-order estimator as its ``twin`` instead.

    Args:
        twin: the model, with ``transfer(controls, inputs)``: a calibrated simulator, or any torch function so wrapped.
        seed: unused here; taken for uniformity.

    Attributes:
        shares: a surrogate is going to ask for the input gradient that belongs to the last estimate; see `take`.
    """

    def __init__(self, *, twin: Differentiable | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._twin = twin
        self.shares = False
        self._shared: tuple[Tensor, Tensor, Tensor] | None = None

    def check(self, session: Session) -> None:
        """Refuse a missing twin, or one of another size than the device."""
        super().check(session)
        check_twin(self._twin, session.spec)

    def law(self, session: Session) -> Differentiable:  # noqa: ARG002
        """What stands for the device."""
        assert self._twin is not None
        return self._twin

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,  # noqa: ARG002
        grad_outputs: Tensor,
    ) -> Tensor:
        """The vector-Jacobian product of the model at the controls."""
        found, shared = pull_back(self.law(session), controls, inputs, grad_outputs, by_inputs=self.shares)
        assert found is not None
        self._shared = None if shared is None else (inputs, grad_outputs, shared)
        return found

    def take(self, inputs: Tensor, grad_outputs: Tensor) -> Tensor | None:
        """The model's input gradient, if the last estimate was of these very tensors; spares another pass."""
        shared, self._shared = self._shared, None
        if shared is None or shared[0] is not inputs or shared[1] is not grad_outputs:
            return None
        return shared[2]


class Exact(Twin):
    """Backpropagates through a `astralora.devices.Differentiable` device's own law; costs no operation.

    For tests and ablation: simulators and calibrated twins have such a law, chips do not.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)

    def check(self, session: Session) -> None:
        """Refuse a device without a law."""
        self._twin = differentiable(session)
        super().check(session)

    def law(self, session: Session) -> Differentiable:
        """The device's own."""
        return differentiable(session)
