"""Open the chips that `tests.chips` serves; child processes import this file too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import astralora.devices as d
from astralora.drivers.frame_mvm import open_frame_mvm
from astralora.drivers.link import LinkDevice
from astralora.drivers.scpi_mvm import open_scpi_mvm
from astralora.drivers.transports import open_transport

__all__ = ["TextDevice", "drivers_of", "open_chips"]

# Longest time without a byte, in seconds; a loaded machine may take long.
PATIENCE = 10.0


class TextDevice(LinkDevice):
    """Drive a chip by lines of text, as a lab would write it."""

    def __init__(self, uri: str) -> None:
        spec = d.DeviceSpec(
            name="text",
            in_features=2,
            out_features=2,
            num_controls=4,
            linear=True,
            coupling="elementwise",
            idempotent_program=True,
        )
        super().__init__(spec, open_transport(uri, timeout=PATIENCE))

    def _open(self) -> None:
        self.transport.open()

    def _close(self) -> None:
        try:
            self._ask("S")
        finally:
            self.transport.close()

    def _program(self, controls: NDArray[Any]) -> None:
        self._ask("V", controls)

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return np.array([self._ask("X", vector) for vector in inputs])

    def _ask(self, command: str, values: Sequence[float] | NDArray[Any] = ()) -> list[float]:
        self.transport.write(" ".join([command, *map(str, values)]).encode() + b"\n")
        answer = self.transport.read_until(b"\n", limit=1000).split()
        if answer[0] != b"OK":
            raise d.DeviceError(b" ".join(answer).decode(), device=self.spec.name)
        return [float(word) for word in answer[1:]]


def open_chips(kind: str, uris: Sequence[str]) -> d.Device:
    """Make a device of a kind, closed."""
    if kind == "numpy":
        return TextDevice(uris[0])
    if kind == "scpi":
        return open_scpi_mvm(uris[0], timeout=PATIENCE)
    if kind == "frame":
        return open_frame_mvm(uris[0], timeout=PATIENCE)
    if kind == "remote":
        return d.make_device("remote", device="frame-mvm", port=uris[0], address=uris[1], patience=120.0)
    return d.TiledDevice([open_frame_mvm(uri, timeout=PATIENCE) for uri in uris], 4, 4)


def drivers_of(device: d.Device) -> list[d.Device]:
    """Return the drivers of all chips of a device."""
    if isinstance(device, d.TiledDevice):
        return [session.device for session in device.sessions]
    return [device]
