"""Define the interface of a device, and the base class of drivers.

A device is programmed with controls ``w`` and then answers a query of inputs ``x`` with ``y = f_w(x)``: with noise, in
the precision of its converters, and without a gradient. `Device` lists the five members that every device has. The
author of a driver derives from `HardwareDevice` and implements four methods on numpy arrays. Optional capabilities are
in `astralora.devices.capabilities`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import NotConnected, ProtocolError
from .memory import aligned
from .spec import DeviceSpec

__all__ = ["Device", "HardwareDevice"]


@runtime_checkable
class Device(Protocol):
    """Map input vectors to output vectors by a function that the controls determine.

    Attributes:
        spec: sizes, ranges and claims of the device; may be read before `open`.
    """

    @property
    def spec(self) -> DeviceSpec:
        """Return sizes, ranges and claims of the device."""
        ...

    def open(self) -> None:
        """Connect; do nothing when connected already."""
        ...

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; do nothing when closed already."""
        ...

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        ...

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        ...


class HardwareDevice(ABC):
    """Drive hardware with numpy: a subclass implements `_open`, `_close`, `_program` and `_query`.

    The session checks all arrays before these methods receive them. The arrays are in C order, read-only, and float32
    or float64 as the caller's tensors. Only one method runs at a time. `_query` is called only while the device is open
    and programmed.

    Args:
        spec: sizes, ranges and claims of the device.
    """

    capabilities: tuple[type, ...] = ()
    """Optional capabilities of the driver; see `astralora.devices.capabilities`."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self._lock = threading.RLock()
        self._is_open = False
        self._is_programmed = False

    def open(self) -> None:
        """Connect; do nothing when connected already."""
        with self._lock:
            if not self._is_open:
                self._is_programmed = False
                self._open()
                self._is_open = True

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; do nothing when closed already."""
        with self._lock:
            if self._is_open:
                # The device counts as closed even if closing its port raises an error.
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
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features).

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
                f"the driver's _query returned {answer.dtype}; it must return numbers",
                device=self.spec.name,
                operation="query",
            )
        # Copied, because a driver may return a buffer that its next query overwrites.
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
        """Pass vectors through the hardware: (batch, in_features) -> (batch, out_features)."""


def _as_array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = aligned(tensor.detach().cpu()).numpy().view()
    array.flags.writeable = False
    return array
