"""Getting an operation through in spite of faults of the link."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from .checks import NotFinite
from .device import Device, Flushes, Resends
from .errors import DeviceError, DeviceTimeout, NotConnected, ProtocolError

__all__ = ["FAULTS", "Recovery", "Retry"]

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FAULTS = (DeviceTimeout, ProtocolError, NotConnected)
"""What may pass when an operation is tried again; every other error is an answer."""


class Retry(BaseModel):
    """How often an operation that meets a fault of the link is tried, and how soon.

    Attributes:
        attempts: in all, the first included; 1 gives up at the first fault.
        wait_seconds: pause before the second attempt; each further pause is twice as long.
        longest_wait_seconds: where pauses stop growing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: PositiveInt = 3
    wait_seconds: _Seconds = 0.02
    longest_wait_seconds: _Seconds = 2.0


class Recovery:
    """Brings a device back after a fault, and decides what may be tried again.

    First, a device that `Resends` is asked for its answer once more, which carries out nothing twice. After that
    it is closed and opened, its link is flushed, its controls are programmed anew, and the operation is
    repeated. What a device does not declare ``idempotent_program`` is never written a second time: its
    queries are repeated where it stands, on a flushed link, and its programs not at all.

    Args:
        device: that has faults.
        retry: how often and how soon.
    """

    def __init__(self, device: Device, retry: Retry) -> None:
        self._device = device
        self._retry = retry

    def run(
        self,
        operation: str,
        fault: DeviceError,
        *,
        again: Callable[[], _Answer],
        resent: Callable[[], _Answer],
        restore: Callable[[], None] | None,
        count: Callable[[], None],
    ) -> _Answer:
        """Get an operation through that has failed once.

        Args:
            operation: its name.
            fault: how it failed.
            again: repeats it.
            resent: asks a device that `Resends` for its answer once more.
            restore: programs what the device held before; None for an operation that programs it itself.
            count: called before each attempt.

        Raises:
            DeviceError: the newest fault, when all attempts are spent or no further one is allowed.
        """
        # Needed on the way of a fault only, and so not at import.
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        newest, attempts = fault, 0

        def attempt() -> _Answer:
            nonlocal newest, attempts
            attempts += 1
            if attempts > 1:  # the first has been made already
                _log.warning("%s; attempt %d of %d", newest, attempts, self._retry.attempts)
                count()
                try:
                    if attempts == 2 and self._can_resend(newest):
                        return resent()
                    self._reconnect(restore)
                    return again()
                except FAULTS as error:
                    newest = error
            reason = None if attempts == 1 and self._can_resend(newest) else self._objection(newest, restore is None)
            if reason is not None and attempts < self._retry.attempts:
                final = type(newest)(f"{newest.message}; {reason}", device=newest.device, operation=newest.operation)
                raise final from newest
            raise newest

        retrying = Retrying(
            stop=stop_after_attempt(self._retry.attempts),
            wait=wait_exponential(multiplier=self._retry.wait_seconds, max=self._retry.longest_wait_seconds),
            retry=retry_if_exception(lambda error: error is newest),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except DeviceError as error:
            error.device = error.device or self._device.spec.name
            error.operation = error.operation or operation
            raise

    def _can_resend(self, fault: DeviceError) -> bool:
        # Of an answer that arrived as it was meant, the same would arrive again.
        return isinstance(self._device, Resends) and not isinstance(fault, (NotConnected, NotFinite))

    def _objection(self, fault: DeviceError, writes: bool) -> str | None:
        """Why there must be no further attempt."""
        if self._device.spec.idempotent_program:
            return None
        if writes:
            return (
                "nobody knows whether the chip has carried it out, and it is not sent again, "
                "since the spec does not declare idempotent_program"
            )
        if isinstance(fault, NotConnected):
            return (
                "the controls may be lost, and are not written again, "
                "since the spec does not declare idempotent_program; call program to go on"
            )
        return None

    def _reconnect(self, restore: Callable[[], None] | None) -> None:
        device = self._device
        if device.spec.idempotent_program:
            # What hangs or has gone cannot be closed well; that is why it is closed.
            with suppress(DeviceError):
                device.close()
            device.open()
        if isinstance(device, Flushes):
            device.flush()
        if restore is not None and device.spec.idempotent_program:
            restore()
