"""Define the interface of a device, and the base class of drivers.

A device is programmed with controls ``w`` and then answers a query of inputs ``x`` with ``y = f_w(x)``: with noise, in
the precision of its converters, and without a gradient. `Device` lists the five members that every device has. The
author of a driver derives from `HardwareDevice` and implements four methods on numpy arrays. Optional capabilities are
in `astralora.devices.capabilities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import NotConnected, ProtocolError
from .memory import aligned
from .ownership import Lock, Ownership, StaysInProcess
from .safety import undo_open
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


class HardwareDevice(StaysInProcess, ABC):
    """Drive hardware with numpy: a subclass implements `_open`, `_close`, `_program` and `_query`.

    The session checks all arrays before these methods receive them. The arrays are in C order, read-only, and float32
    or float64 as the caller's tensors. Only one method runs at a time. `_query` is called only while the device is open
    and programmed. `_close` is also called after an `_open` that failed or was interrupted, and may run in another
    thread than the other methods.

    An open device belongs to the process that opened it. In a child process, all operations raise `DeviceError`, and
    `close` does nothing.

    Args:
        spec: sizes, ranges and claims of the device.
    """

    capabilities: tuple[type, ...] = ()
    """Optional capabilities of the driver; see `astralora.devices.capabilities`."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self._ownership = Ownership()
        self._is_open = False
        self._is_programmed = False
        self._must_close = False

    @property
    def _lock(self) -> Lock:
        """Return the lock of the device; entering it in a process that did not open the device raises an error."""
        return self._ownership.lock

    def open(self) -> None:
        """Connect; do nothing when connected already.

        Raises:
            BaseException: error of `_open`, after the device was closed again.
        """
        try:
            with self._lock:
                if not self._is_open:
                    self._ownership.claim(self.spec.name)
                    self._is_programmed = False
                    self._must_close = True
                    self._open()
                    self._is_open = True
        except BaseException:
            # The lock is free here, because the device is closed in another thread.
            if not self._is_open:
                undo_open(self)
            raise

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; do nothing when closed already."""
        if self._ownership.is_foreign:
            return
        with self._lock:
            if not self._must_close:
                return
            self._is_open = self._is_programmed = False
            try:
                self._close()
            except Exception:
                # The device counts as closed even if closing its port raises an error, but not after an interruption.
                self._end()
                raise
            self._end()

    def _end(self) -> None:
        self._must_close = False
        self._ownership.release()

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
