"""Connect to chips over a transport, and identify them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
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
"""Largest number of bytes of a spec that a host accepts."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identify a chip.

    Attributes:
        manufacturer, model, serial_number, firmware: the four words of an answer to ``*IDN?``.
    """

    manufacturer: str
    model: str
    serial_number: str
    firmware: str


_Found = TypeVar("_Found", bound=Identity, covariant=True)


class Link(Protocol[_Found]):
    """Send requests of a wire protocol, as the host."""

    def start(self) -> None:
        """Reset the state of the protocol after the transport was opened and flushed."""

    def identify(self) -> _Found:
        """Request the identity of the chip."""
        ...

    def spec(self) -> DeviceSpec:
        """Request the spec of the chip."""
        ...


class LinkDevice(HardwareDevice):
    """Drive a chip over a `Transport`.

    An operation that is interrupted leaves a mark on the transport, so that `flush` waits for the late answer.

    Args:
        spec: spec of the chip.
        transport: closed transport; the device opens and closes it.
    """

    capabilities: tuple[type, ...] = (Flushes,)

    def __init__(self, spec: DeviceSpec, transport: Transport) -> None:
        super().__init__(spec)
        self.transport = transport

    def open(self) -> None:
        """Connect; do nothing when connected already, and connect again when the line was lost."""
        with self._lock:
            if self._is_open and not self.transport.is_open:
                self._is_open = False
        # Without the lock, because a device that fails to open is closed in another thread.
        super().open()

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; do nothing when closed already.

        A line that was lost, or that holds a part of a message, is opened again first, so that the command that brings
        the hardware into its safe state can be sent.
        """
        if not self._ownership.is_foreign:
            with self._lock:
                if self._must_close and (self.transport.is_cut or not self.transport.is_open):
                    with suppress(DeviceError):
                        self.transport.close()
                    with suppress(DeviceError):
                        self.transport.open()
        super().close()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        try:
            super().program(controls)
        except (KeyboardInterrupt, SystemExit):
            self.transport.break_off()
            raise

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        try:
            return super().query(inputs)
        except (KeyboardInterrupt, SystemExit):
            self.transport.break_off()
            raise

    def flush(self) -> None:
        """Discard bytes until no answer to an earlier request can arrive any more; see `Transport.drain`."""
        with self._lock:
            self.transport.drain()

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """Cut the line within a ``with`` block, for tests."""
        with self.transport.interrupted():
            yield


class ProtocolDevice(LinkDevice):
    """Drive a chip over a wire protocol in which the chip reports its identity and spec.

    Args:
        spec: spec of the chip.
        transport: transport to the chip; the device opens and closes it.
        link: host's end of the protocol on this transport.
        identity: identity that the chip reported when it was found.
        most_vectors: largest number of vectors in one request.
    """

    def __init__(
        self, spec: DeviceSpec, transport: Transport, link: Link[Identity], identity: Identity, most_vectors: int
    ) -> None:
        batch = min(spec.max_batch or most_vectors, most_vectors)
        super().__init__(spec.model_copy(update={"max_batch": batch}), transport)
        self.identity = identity
        self.link = link

    def flush(self) -> None:
        """Discard all bytes that have arrived; late answers are recognised by their numbers."""
        with self._lock:
            self.transport.flush()

    def _open(self) -> None:
        self.transport.open()
        try:
            self.transport.flush()
            self.link.start()
            self._require_same_chip(self.link.identify())
            self._configure()
        except BaseException:
            self.transport.close()
            raise

    def _configure(self) -> None:
        """Set what the chip does not keep from one connection to the next."""

    def _require_same_chip(self, found: Identity) -> None:
        if found.serial_number != self.identity.serial_number:
            raise DeviceError(
                f"the chip has serial number {found.serial_number!r}, but the chip at this port had "
                f"{self.identity.serial_number!r} before; make a new device for the new chip",
                device=self.spec.name,
                operation="open",
            )

    def _as_tensor(self, outputs: NDArray[Any], like: Tensor) -> Tensor:
        # No copy is needed, because each answer is decoded into new memory.
        return torch.from_numpy(outputs).to(like)


def find_chip(
    port: str, timeout: float, make_link: Callable[[Transport], Link[_Found]]
) -> tuple[Transport, _Found, DeviceSpec]:
    """Request identity and spec of the chip at a port.

    Args:
        port: address of the chip; see `open_transport`.
        timeout: longest time without a byte, in seconds.
        make_link: function that makes the host's end of the protocol.

    Returns:
        The transport, the identity, and the spec. The transport is closed, unless its address gives a time to settle.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: no device at this port uses the protocol.
    """
    transport = open_transport(port, timeout)
    link = make_link(transport)
    transport.open()
    try:
        transport.flush()
        identity, spec = link.identify(), link.spec()
    except BaseException:
        transport.close()
        raise
    if transport.settle:
        # Opening the port a second time would reset the board a second time.
        transport.park()
    else:
        transport.close()
    _log.info("%s: %s %s, number %s", port, identity.manufacturer, identity.model, identity.serial_number)
    return transport, identity, spec


def parse_spec(text: Bytes) -> DeviceSpec:
    """Decode a spec that was sent as JSON.

    Raises:
        ProtocolError: the text is not a valid spec; the message names the first wrong field.
    """
    try:
        return DeviceSpec.model_validate_json(bytes(text))
    except ValidationError as error:
        raise ProtocolError(f"the spec that the device sent is not valid: {first_problem(error)}") from None
