"""A device for pricing a plan: everything but the physics."""

from __future__ import annotations

from torch import Tensor

from .spec import DeviceSpec

__all__ = ["RehearsalDevice"]


class RehearsalDevice:
    """Answers zeros in the right shape, so that a run's operations can be counted without a run.

    It takes the place of a device with the same spec: what is asked of it is what would be asked
    of the real one, as far as that does not depend on the answers.

    Args:
        spec: of the device that it stands in for.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec

    def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def close(self) -> None:
        """Do nothing."""

    def program(self, controls: Tensor) -> None:
        """Accept the controls and forget them."""

    def query(self, inputs: Tensor) -> Tensor:
        """Zeros: (batch, in_features) -> (batch, out_features)."""
        return inputs.new_zeros(len(inputs), self.spec.out_features)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Zeros: (settings, batch, out_features)."""
        return inputs.new_zeros(len(controls), len(inputs), self.spec.out_features)

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Zeros that autograd can follow."""
        zeros = inputs.new_zeros(len(inputs), self.spec.out_features)
        return zeros + 0.0 * (controls.sum(dim=-1)[..., None, None] + inputs.sum())
