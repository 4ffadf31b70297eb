"""Find emulators, which answer on a port for a device that has no firmware."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import entry_points
from typing import Protocol, Self

from .device import Device
from .errors import DeviceError
from .wrappers.faults import FaultKind, FaultPlan

__all__ = ["Emulates", "list_emulators", "make_emulator"]

EMULATOR_GROUP = "astralora.emulators"


class Emulates(Protocol):
    """Serve a device on a port, so that a driver can connect to it.

    Attributes:
        driver: name of the registered device whose driver connects to the port.
        uri: value for the ``port`` option of that driver.
    """

    driver: str
    uri: str

    @property
    def injected(self) -> Counter[FaultKind]:
        """Return the number of injected faults of each kind."""
        ...

    def start(self) -> Self:
        """Start to answer requests, in a separate thread."""
        ...

    def wait(self) -> None:
        """Block until `stop` is called or the calling thread is interrupted."""

    def stop(self) -> None:
        """Stop answering requests, and bring the device into its safe state."""


def list_emulators() -> list[str]:
    """Return the names of all protocols that can serve a device."""
    return sorted(point.name for point in entry_points(group=EMULATOR_GROUP))


def make_emulator(
    protocol: str, device: Device, address: str, *, faults: FaultPlan | None = None, public: bool = False
) -> Emulates:
    """Make an emulator that listens on an address; it answers requests after its `start` was called.

    A package registers a protocol with an entry point in the group ``astralora.emulators``. The entry point names a
    function with the parameters ``(device, address, faults, *, public)``.

    Args:
        protocol: ``"frames"``, ``"scpi"``, or another registered protocol.
        device: device that computes the answers.
        address: address to listen on, such as ``pty`` or ``tcp://127.0.0.1:0``.
        faults: faults to inject; None for no faults.
        public: allow an address that other machines can reach; there is no authentication.

    Raises:
        DeviceError: there is no such protocol, or the address cannot be used.
    """
    for point in entry_points(group=EMULATOR_GROUP, name=protocol):
        emulator: Emulates = point.load()(device, address, faults, public=public)
        return emulator
    raise DeviceError(
        f"there is no emulator for the protocol {protocol!r}; known are {', '.join(list_emulators()) or 'none'}"
    )
