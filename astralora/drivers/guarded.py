"""Drive a chip whose watchdog brings it into its safe state when the host is gone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from ..devices import DeviceSpec
from .link import Identity, Link, ProtocolDevice
from .transports import Transport
from .watchdog import Heartbeat, milliseconds_of

__all__ = ["GuardedDevice", "GuardedLink"]


class GuardedLink(Link[Identity], Protocol):
    """Send requests of a wire protocol with a watchdog, as the host.

    Attributes:
        sent_at: time of the newest request, by the clock `time.monotonic`.
    """

    sent_at: float

    def set_watchdog(self, milliseconds: int) -> None:
        """Set the time without a request after which the chip becomes safe; 0 for never."""


class GuardedDevice(ProtocolDevice):
    """Drive a chip over a wire protocol with a watchdog.

    While the device is open, a thread sends a request whenever the program has sent none for a third of the time. So
    the chip keeps its controls while the program computes, and becomes safe when the process ends in any way.

    Args:
        spec: spec of the chip.
        transport: closed transport to the chip.
        link: host's end of the protocol on this transport.
        identity: identity that the chip reported when it was found.
        most_vectors: largest number of vectors in one request.
        watchdog: time without a request after which the chip becomes safe, in seconds; None for never.
    """

    link: GuardedLink

    def __init__(
        self,
        spec: DeviceSpec,
        transport: Transport,
        link: GuardedLink,
        identity: Identity,
        most_vectors: int,
        watchdog: float | None,
    ) -> None:
        super().__init__(spec, transport, link, identity, most_vectors)
        self.watchdog = watchdog
        self._heartbeat: Heartbeat | None = None

    def _configure(self) -> None:
        if self.watchdog is None:
            self._disable_watchdog()
            return
        self._enable_watchdog()
        self._heartbeat = Heartbeat(self.watchdog, self._lock, self._beat, self._sent_at, self.spec.name)
        self._heartbeat.start()

    def _close(self) -> None:
        heartbeat, self._heartbeat = self._heartbeat, None
        try:
            if heartbeat is not None:
                heartbeat.stop()
        finally:
            try:
                self._make_safe()
            finally:
                self.transport.close()

    def _before_request(self) -> None:
        """Set the watchdog first where it may be off; call this at the beginning of every operation."""
        if self._heartbeat is not None:
            self._heartbeat.before_request()

    def _beat(self) -> None:
        assert self.watchdog is not None
        self.link.set_watchdog(milliseconds_of(self.watchdog))

    def _sent_at(self) -> float:
        return self.link.sent_at

    @abstractmethod
    def _enable_watchdog(self) -> None:
        """Set the watchdog for the first time; raise `DeviceError` if the chip has none."""

    @abstractmethod
    def _disable_watchdog(self) -> None:
        """Turn off a watchdog that an earlier host has set, if the chip has one."""

    @abstractmethod
    def _make_safe(self) -> None:
        """Bring the chip into its safe state."""
