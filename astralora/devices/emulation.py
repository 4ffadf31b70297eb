"""Finding emulators: what serves a device on a port in the place of its firmware."""

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
    """A device on a port.

    Attributes:
        driver: the registered device that speaks to it.
        uri: the ``port`` option of that device.
    """

    driver: str
    uri: str

    @property
    def injected(self) -> Counter[FaultKind]:
        """How many faults of each kind there were."""
        ...

    def start(self) -> Self:
        """Begin to answer, from a thread of its own."""
        ...

    def wait(self) -> None:
        """Answer until somebody calls `stop`, or the thread is interrupted."""

    def stop(self) -> None:
        """Answer no more, and bring the device into its safe state."""


def list_emulators() -> list[str]:
    """The protocols that devices can be served by."""
    return sorted(point.name for point in entry_points(group=EMULATOR_GROUP))


def make_emulator(
    protocol: str, device: Device, address: str, *, faults: FaultPlan | None = None, public: bool = False
) -> Emulates:
    """An emulator that listens, and answers once it is started.

    Protocols are registered by packages, with an entry point in the group ``astralora.emulators`` for a function
    that is called as this one is.

    Args:
        protocol: ``"frames"``, ``"scpi"``, or another that is registered.
        device: what answers.
        address: where to listen, such as ``pty`` or ``tcp://127.0.0.1:0``.
        faults: what goes wrong on purpose.
        public: allow an address that others than this machine can reach. Nothing is authenticated.

    Raises:
        DeviceError: there is no such protocol, or it is impossible to listen there.
    """
    for point in entry_points(group=EMULATOR_GROUP, name=protocol):
        emulator: Emulates = point.load()(device, address, faults, public=public)
        return emulator
    raise DeviceError(f"no emulator speaks {protocol!r}; known are {', '.join(list_emulators()) or 'none'}")
