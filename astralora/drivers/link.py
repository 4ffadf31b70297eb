"""Open chips at the end of a line of bytes, and identify them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from ..devices import DeviceError, DeviceSpec, Flushes, HardwareDevice, ProtocolError
from ..devices.validation import first_problem
from .transports import Transport, open_transport
from .transports.base import Bytes

__all__ = ["LONGEST_SPEC", "Identity", "Link", "LinkDevice", "ProtocolDevice", "find_chip", "parse_spec"]

_log = logging.getLogger(__name__)

LONGEST_SPEC: Final = 1 << 23
"""Bytes of a spec that a host accepts."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identify a chip.

    Attributes:
        manufacturer, model, serial_number, firmware: as with ``*IDN?``.
    """

    manufacturer: str
    model: str
    serial_number: str
    firmware: str


_Found = TypeVar("_Found", bound=Identity, covariant=True)


class Link(Protocol[_Found]):
    """Speak a wire protocol as its host."""

    def start(self) -> None:
        """Begin anew on a line that was opened and flushed."""

    def identify(self) -> _Found:
        """Ask the chip for its identity."""
        ...

    def spec(self) -> DeviceSpec:
        """Ask the chip for its spec."""
        ...


class LinkDevice(HardwareDevice):
    """Drive a chip over a `Transport`.

    Args:
        spec: of the chip.
        transport: closed; opened and closed with the device.
    """

    capabilities: tuple[type, ...] = (Flushes,)

    def __init__(self, spec: DeviceSpec, transport: Transport) -> None:
        super().__init__(spec)
        self.transport = transport

    def flush(self) -> None:
        """Discard all bytes that have arrived on the line unasked."""
        with self._lock:
            self.transport.flush()

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """Cut the line within this block, for tests."""
        with self.transport.interrupted():
            yield


class ProtocolDevice(LinkDevice):
    """Drive a chip over a wire protocol that reports identity and spec.

    Args:
        spec: of the chip.
        transport: to the chip; closed.
        link: the host's end of the protocol on that transport.
        identity: of the chip, as it was found.
        most_vectors: vectors that one request can hold.
    """

    def __init__(
        self, spec: DeviceSpec, transport: Transport, link: Link[Identity], identity: Identity, most_vectors: int
    ) -> None:
        batch = min(spec.max_batch or most_vectors, most_vectors)
        super().__init__(spec.model_copy(update={"max_batch": batch}), transport)
        self.identity = identity
        self.link = link

    def _open(self) -> None:
        self.transport.open()
        try:
            self.transport.flush()
            self.link.start()
            self._require_same_chip(self.link.identify())
        except BaseException:
            self.transport.close()
            raise

    def _require_same_chip(self, found: Identity) -> None:
        if found.serial_number != self.identity.serial_number:
            raise DeviceError(
                f"number {self.identity.serial_number!r} was here before, and now number {found.serial_number!r} "
                f"answers; make the device anew",
                device=self.spec.name,
                operation="open",
            )

    def _as_tensor(self, outputs: NDArray[Any], like: Tensor) -> Tensor:
        # Answers are decoded into memory of their own: no copy is needed.
        return torch.from_numpy(outputs).to(like)


def find_chip(
    port: str, timeout: float, make_link: Callable[[Transport], Link[_Found]]
) -> tuple[Transport, _Found, DeviceSpec]:
    """Ask the chip at a port for its identity and its spec.

    Args:
        port: address of the chip; see `open_transport`.
        timeout: longest silence to wait through, in seconds.
        make_link: makes the host's end of the protocol.

    Returns:
        The transport, closed again; the identity; the spec.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: nothing at that port speaks the protocol.
    """
    transport = open_transport(port, timeout)
    link = make_link(transport)
    with transport:
        transport.flush()
        identity, spec = link.identify(), link.spec()
    _log.info("%s: %s %s, number %s", port, identity.manufacturer, identity.model, identity.serial_number)
    return transport, identity, spec


def parse_spec(text: Bytes) -> DeviceSpec:
    """Read a spec that was sent as JSON.

    Raises:
        ProtocolError: it is no spec; the error names the first field that is wrong.
    """
    try:
        return DeviceSpec.model_validate_json(bytes(text))
    except ValidationError as error:
        raise ProtocolError(f"its spec is not valid: {first_problem(error)}") from None
