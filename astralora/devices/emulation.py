"""Find emulators, which serve a device on a port in place of its firmware."""

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
    """Serve a device on a port.

    Attributes:
        driver: name of the registered device that connects to it.
        uri: ``port`` option of that device.
    """

    driver: str
    uri: str

    @property
    def injected(self) -> Counter[FaultKind]:
        """Return the number of injected faults of each kind."""
        ...

    def start(self) -> Self:
        """Start to answer, in a thread of its own."""
        ...

    def wait(self) -> None:
        """Block until `stop` is called, or the thread is interrupted."""

    def stop(self) -> None:
        """Stop answering, and leave the device in its safe state."""


def list_emulators() -> list[str]:
    """Return the names of all protocols that can serve a device."""
    return sorted(point.name for point in entry_points(group=EMULATOR_GROUP))


def make_emulator(
    protocol: str, device: Device, address: str, *, faults: FaultPlan | None = None, public: bool = False
) -> Emulates:
    """Make an emulator that listens, and answers once it is started.

    A package registers a protocol with an entry point in the group ``astralora.emulators``; it names a function with
    the parameters ``(device, address, faults, *, public)``.

    Args:
        protocol: ``"frames"``, ``"scpi"``, or another registered protocol.
        device: device that answers.
        address: address to listen on, such as ``pty`` or ``tcp://127.0.0.1:0``.
        faults: faults to inject; None for no faults.
        public: allow an address that other machines can reach; there is no authentication.

    Raises:
        DeviceError: there is no such protocol, or the address cannot be used.
    """
    for point in entry_points(group=EMULATOR_GROUP, name=protocol):
        emulator: Emulates = point.load()(device, address, faults, public=public)
        return emulator
    raise DeviceError(f"no emulator speaks {protocol!r}; known are {', '.join(list_emulators()) or 'none'}")
