"""Make a device from existing functions that control the hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from .device import HardwareDevice
from .spec import DeviceSpec

__all__ = ["wrap_device"]


def wrap_device(
    spec: DeviceSpec,
    *,
    program: Callable[[NDArray[Any]], object],
    query: Callable[[NDArray[Any]], Any],
    open: Callable[[], object] | None = None,  # noqa: A002
    close: Callable[[], object] | None = None,
) -> HardwareDevice:
    """Make a device from functions of pymeasure, QCoDeS, a vendor's library, or your own code.

    The functions receive checked arrays, in C order and read-only. Errors of these functions are raised unchanged.
    Where repeating the operation may help, the functions should raise `astralora.devices.DeviceTimeout`,
    `astralora.devices.NotConnected` or `astralora.devices.ProtocolError`.

    Args:
        spec: sizes, ranges and claims of the device.
        program: function that sets all controls, (num_controls,).
        query: function that returns outputs, (batch, out_features), for inputs, (batch, in_features).
        open: function that connects; None if there is nothing to do.
        close: function that leaves the hardware in its safe state and disconnects; None if there is nothing to do.
    """
    return _WrappedDevice(spec, program, query, open, close)


class _WrappedDevice(HardwareDevice):
    def __init__(
        self,
        spec: DeviceSpec,
        program: Callable[[NDArray[Any]], object],
        query: Callable[[NDArray[Any]], Any],
        open_: Callable[[], object] | None,
        close: Callable[[], object] | None,
    ) -> None:
        super().__init__(spec)
        self._functions = program, query, open_, close

    def _open(self) -> None:
        if self._functions[2] is not None:
            self._functions[2]()

    def _close(self) -> None:
        if self._functions[3] is not None:
            self._functions[3]()

    def _program(self, controls: NDArray[Any]) -> None:
        self._functions[0](controls)

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        outputs: NDArray[Any] = self._functions[1](inputs)
        return outputs
