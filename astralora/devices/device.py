"""The one interface that chips, simulators and wrappers share.

A device is programmed with controls ``w`` and then answers ``y = f_w(x)``, with noise, in the
precision of its converters, and without a gradient. What a device can do beyond that is told by
small protocols of their own, which it either implements or does not.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import NotConnected, ProtocolError
from .memory import aligned
from .spec import DeviceSpec
from .usage import Usage

__all__ = [
    "ChecksRequests",
    "Composite",
    "Device",
    "Differentiable",
    "Flushes",
    "HardwareDevice",
    "PassesOn",
    "ProgramsMany",
    "PullsBack",
    "Reciprocal",
    "ReportsPeaks",
    "Resends",
    "Snapshots",
    "Twinned",
]

_Capability = TypeVar("_Capability")


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

    The reverse port takes and gives what `astralora.devices.DeviceSpec.backward` says.
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
class PassesOn(Protocol):
    """A wrapper of which some abilities of what it wraps are true as well, as far as they cost no operation."""

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """This or what is behind it, whichever implements ``protocol``; None where neither does truly."""
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
class PullsBack(Protocol):
    """A `Differentiable` law that gives gradients without its answer: on a linear one, for a product fewer."""

    def vjp(
        self,
        controls: Tensor,
        inputs: Tensor,
        grad_outputs: Tensor,
        *,
        by_controls: bool = True,
        by_inputs: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The vector-Jacobian product of ``transfer(controls, inputs)``.

        Args:
            controls: (num_controls,).
            inputs: (batch, in_features).
            grad_outputs: (batch, out_features).
            by_controls: whether the first is wanted.
            by_inputs: whether the second is.

        Returns:
            By controls, (num_controls,), and by inputs, (batch, in_features); None for what is not wanted.
        """
        ...


@runtime_checkable
class Twinned(Protocol):
    """A device that comes with a model of itself; see `astralora.devices.CalibratedDevice`."""

    @property
    def twin(self) -> Differentiable | None:
        """The model; None where none is good enough."""
        ...


@runtime_checkable
class Flushes(Protocol):
    """A device behind a link on which something may still be under way after a fault."""

    def flush(self) -> None:
        """Discard whatever has arrived, or is about to; the chip is left as it is."""


@runtime_checkable
class Resends(Protocol):
    """A device that numbers its requests, so that repeating the newest one carries nothing out twice."""

    def resend(self) -> Tensor | None:
        """Send the newest request once more under its old number, and return its answer: None for a program."""
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

    Arrays arrive checked by the session, in C order, read-only, in the caller's float32 or float64. One method
    runs at a time; a device that is closed, or holds no controls, is not asked.

    Args:
        spec: what the device promises.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self._lock = threading.RLock()
        self._is_open = False
        self._is_programmed = False

    def open(self) -> None:
        """Connect; does nothing when connected already."""
        with self._lock:
            if not self._is_open:
                self._is_programmed = False
                self._open()
                self._is_open = True

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; does nothing when closed already."""
        with self._lock:
            if self._is_open:
                # A port that fails while closing is not open any more either.
                self._is_open = self._is_programmed = False
                self._close()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units.

        Raises:
            NotConnected: the device is closed.
        """
        with self._lock:
            self._require(self._is_open, "program", "is closed; call open first")
            self._program(_as_array(controls))
            self._is_programmed = True

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features).

        Raises:
            NotConnected: the device is closed, or has not been programmed since it was opened.
        """
        with self._lock:
            self._require(self._is_open, "query", "is closed; call open first")
            self._require(self._is_programmed, "query", "no controls are set; call program first")
            return self._as_tensor(self._query(_as_array(inputs)), inputs)

    def _require(self, condition: bool, operation: str, otherwise: str) -> None:
        if not condition:
            raise NotConnected(otherwise, device=self.spec.name, operation=operation)

    def _as_tensor(self, outputs: NDArray[Any], like: Tensor) -> Tensor:
        answer = np.asarray(outputs)
        if answer.dtype.kind not in "fiu":
            raise ProtocolError(
                f"the driver's _query returned {answer.dtype} where numbers are due",
                device=self.spec.name,
                operation="query",
            )
        # Own memory: a driver may hand out the buffer that it fills again on the next query.
        return torch.tensor(answer, dtype=like.dtype, device=like.device)

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
    array: NDArray[Any] = aligned(tensor.detach().cpu()).numpy().view()
    array.flags.writeable = False
    return array
