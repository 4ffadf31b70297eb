"""The one interface that chips, simulators and wrappers share.

A device is programmed with controls ``w`` and then answers ``y = f_w(x)``, with noise, in the
precision of its converters, and without a gradient. What a device can do beyond that is told by
small protocols of their own, which it either implements or does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ProtocolError
from .spec import DeviceSpec
from .usage import Usage

__all__ = [
    "ChecksRequests",
    "Composite",
    "Device",
    "Differentiable",
    "HardwareDevice",
    "ProgramsMany",
    "Reciprocal",
    "ReportsPeaks",
    "Snapshots",
]


@runtime_checkable
class Device(Protocol):
    """A programmable black box that maps input vectors to output vectors.

    Attributes:
        spec: what the device promises; may be read before `open`.
    """

    @property
    def spec(self) -> DeviceSpec:
        """What the device promises about itself."""
        ...

    def open(self) -> None:
        """Connect; does nothing when connected already."""
        ...

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; does nothing when closed already."""
        ...

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        ...

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        ...


@runtime_checkable
class ProgramsMany(Protocol):
    """A device that runs many settings in one call, faster than one after the other."""

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features). The device is left at the last setting.
        """
        ...


@runtime_checkable
class ChecksRequests(Protocol):
    """A device that refuses bad requests by itself, and spares a session from having that done twice."""

    def program_unchecked(self, controls: Tensor) -> None:
        """`Device.program` of controls that are known to be legal."""

    def query_unchecked(self, inputs: Tensor) -> Tensor:
        """`Device.query` of inputs that are known to be legal."""
        ...


@runtime_checkable
class Reciprocal(Protocol):
    """A device that light can be sent through backwards: it multiplies by the transpose of its transfer matrix.

    The reverse port takes and gives what `devices.DeviceSpec.backward` says.
    """

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors in reverse: (batch, out_features) -> (batch, in_features)."""
        ...


@runtime_checkable
class Composite(Protocol):
    """A device made of several, which counts what each of them was asked for."""

    @property
    def usage(self) -> Usage:
        """What all parts have been asked for, together."""
        ...

    def price(self, usage: Usage) -> Usage:
        """The most that operations on the whole come to on its parts."""
        ...


@runtime_checkable
class ReportsPeaks(Protocol):
    """A device whose detectors may saturate without that showing in its outputs, since those are sums."""

    @property
    def peaks(self) -> Tensor:
        """Of each vector of the newest query, the largest share of a detector's range that was reached: (batch,)."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """A device whose law autograd can follow: simulators and calibrated twins."""

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """The device's answer without noise and rounding, as a differentiable torch function.

        Args:
            controls: (num_controls,), or (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (batch, out_features), or (settings, batch, out_features).
        """
        ...


@runtime_checkable
class Snapshots(Protocol):
    """A device whose whole inner state can be saved and put back, so that a run can go on exactly."""

    def state_dict(self) -> dict[str, Any]:
        """The inner state, as tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> bool | None:
        """Put back what `state_dict` returned; False tells that some of it could not be."""
        ...


class HardwareDevice(ABC):
    """Base of drivers that work in numpy: fill in `_open`, `_close`, `_program` and `_query`.

    Arrays arrive checked by the session, in C order, read-only, in the caller's float32 or float64.

    Args:
        spec: what the device promises.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self._is_open = False

    def open(self) -> None:
        """Connect; does nothing when connected already."""
        if not self._is_open:
            self._open()
            self._is_open = True

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; does nothing when closed already."""
        if self._is_open:
            # A port that fails while closing is not open any more either.
            self._is_open = False
            self._close()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        self._program(_as_array(controls))

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        answer = np.asarray(self._query(_as_array(inputs)))
        if answer.dtype.kind not in "fiu":
            raise ProtocolError(
                f"the driver's _query returned {answer.dtype} where numbers are due",
                device=self.spec.name,
                operation="query",
            )
        # Own memory: a driver may hand out the buffer that it fills again on the next query.
        return torch.tensor(answer, dtype=inputs.dtype, device=inputs.device)

    @abstractmethod
    def _open(self) -> None:
        """Connect to the hardware."""

    @abstractmethod
    def _close(self) -> None:
        """Bring the hardware into its safe state and disconnect."""

    @abstractmethod
    def _program(self, controls: NDArray[Any]) -> None:
        """Set all controls: shape (num_controls,)."""

    @abstractmethod
    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Answer (batch, in_features) with (batch, out_features)."""


def _as_array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy().view()
    array.flags.writeable = False
    return array
