"""Repeat operations that failed because of a fault of the link."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, PositiveInt
from torch import Tensor

from .capabilities import Flushes, Resends, capability_of
from .checks import NotFinite
from .device import Device
from .errors import DeviceError, DeviceTimeout, NotConnected, ProtocolError
from .validation import Described

__all__ = ["FAULTS", "Recovery", "Retry"]

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FAULTS = (DeviceTimeout, ProtocolError, NotConnected)
"""Errors after which an operation may be repeated; all other errors are final."""


class Retry(Described):
    """Set the number of attempts after a fault of the link, and the pauses between them.

    Attributes:
        attempts: total number of attempts, including the first; with 1, nothing is repeated.
        wait_seconds: pause before the second attempt; each further pause is twice as long.
        longest_wait_seconds: longest pause.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: PositiveInt = 3
    wait_seconds: _Seconds = 0.02
    longest_wait_seconds: _Seconds = 2.0


class Recovery:
    """Restore a device after a fault, and decide which operations may be repeated.

    A device with the capability `Resends` first sends its answer again, without carrying out the operation twice. If
    that fails, the device is closed and opened, its link is flushed, its controls are programmed again, and the
    operation is repeated. A device that does not declare ``idempotent_program`` never receives the same controls twice:
    its queries are repeated on a flushed link without reopening it, and its programs are not repeated.

    Args:
        device: device that has faults.
        retry: number of attempts and pauses between them.
    """

    def __init__(self, device: Device, retry: Retry) -> None:
        self._device = device
        self._retry = retry
        self._resends = capability_of(device, Resends)
        self._flushes = capability_of(device, Flushes)

    def run(
        self,
        operation: str,
        fault: DeviceError,
        *,
        again: Callable[[], _Answer],
        resent: Callable[[Callable[[], Tensor | None]], _Answer],
        restore: Callable[[], object] | None,
        count: Callable[[], None],
    ) -> _Answer:
        """Repeat an operation that has failed once, until it succeeds or may not be repeated.

        Args:
            operation: name of the operation.
            fault: error of the first attempt.
            again: function that repeats the operation.
            resent: function that receives `Resends.resend`, calls it, and returns the answer.
            restore: function that programs the previous controls again; None for an operation that programs the device.
            count: function that is called before each further attempt.

        Raises:
            DeviceError: all attempts have failed, or no further attempt is allowed; this is the newest fault.
        """
        # Imported here: only a fault needs it.
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        newest, attempts = fault, 0

        def attempt() -> _Answer:
            nonlocal newest, attempts
            attempts += 1
            if attempts > 1:  # the session has made the first attempt
                _log.warning("%s; attempt %d of %d", newest, attempts, self._retry.attempts)
                count()
                try:
                    if attempts == 2 and self._resends is not None and _may_resend(newest):
                        return resent(self._resends.resend)
                    self._reconnect(restore)
                    return again()
                except FAULTS as error:
                    newest = error
            resends_next = attempts == 1 and self._resends is not None and _may_resend(newest)
            reason = None if resends_next else self._objection(newest, writes=restore is None)
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

    def _objection(self, fault: DeviceError, *, writes: bool) -> str | None:
        """Return the reason why no further attempt is allowed, or None."""
        if self._device.spec.idempotent_program:
            return None
        if writes:
            return (
                "the chip may or may not have carried out the program, which is not sent again "
                "because the spec does not declare idempotent_program"
            )
        if isinstance(fault, NotConnected):
            return (
                "the controls may be lost, and are not sent again "
                "because the spec does not declare idempotent_program; call program to continue"
            )
        return None

    def _reconnect(self, restore: Callable[[], object] | None) -> None:
        device = self._device
        if device.spec.idempotent_program:
            # A device that hangs or is disconnected may fail to close; it is opened again in any case.
            with suppress(DeviceError):
                device.close()
            device.open()
        if self._flushes is not None:
            self._flushes.flush()
        if restore is not None and device.spec.idempotent_program:
            restore()


def _may_resend(fault: DeviceError) -> bool:
    """Return whether sending the answer again may help: a damaged answer may arrive intact, NaN would stay NaN."""
    return not isinstance(fault, (NotConnected, NotFinite))
