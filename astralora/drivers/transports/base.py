"""Define the interface and the common behaviour of all transports."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar, Final, NoReturn

from ...devices import DeviceTimeout, NotConnected, ProtocolError
from .connection import Connection
from .exchange_state import ExchangeState

__all__ = ["Bytes", "Transport"]

_log = logging.getLogger(__name__)

Bytes = bytes | bytearray | memoryview

# Number of bytes of a message that are logged.
_SHOWN: Final = 24
# Number of bytes of a message that are kept to recognise its echo.
_KEPT: Final = 64
# Longest time to flush a line, in seconds.
_FLUSH: Final = 0.5
# An answer may take this many timeouts, and at least this many seconds, beside the time of its bytes.
_TIMEOUTS: Final = 10
_LEAST: Final = 1.0
# Shortest timeout, in seconds.
_TICK: Final = 1e-3


class Transport(Connection):
    """Exchange bytes with the other end of a line: implement `_open`, `_close`, `_send` and `_receive`.

    Public methods lock, log the first bytes in hexadecimal at DEBUG, and time out. A read returns all requested bytes
    or raises `DeviceTimeout`; it never returns fewer. A transport whose line is lost closes itself, so that `open`
    connects again. What arrived before the first message after opening is discarded.

    Args:
        uri: address of the other end, for messages.
        timeout: longest time without a byte, in seconds.

    Attributes:
        deadline: longest time for a whole answer, in seconds, beside the patience of its reads; None for ten timeouts
            (at least 1 s) and the time that its bytes need at half the speed of the line, at most 0.01 s for each byte
            where the line is faster than 200 bytes per second.
        settle: time to wait after connecting, in seconds, for boards that reset when their port is opened. What arrives
            meanwhile is discarded; a port that vanishes is opened again when it comes back within this time.
        sent: number of bytes sent.
        received: number of bytes received.
    """

    forgets: ClassVar[bool] = False
    """Whether no bytes of an earlier connection can arrive after opening."""
    silence: float = 0.05
    """Time without a byte after which an answer counts as finished, in seconds; see `drain`."""
    slowest: float = 0.01
    """Longest average time for a byte, in seconds, without a deadline."""

    def __init__(self, uri: str, timeout: float = 2.0) -> None:
        super().__init__(uri, timeout)
        self.deadline: float | None = None
        self.sent = 0
        self.received = 0
        self._interrupted = False
        self._is_new = False
        self._newest: bytes = b""
        self._state = ExchangeState()

    @property
    def is_cut(self) -> bool:
        """Return whether a message was sent in part only, so that the line must be closed and opened."""
        return self._state.cut

    @property
    def has_remnant(self) -> bool:
        """Return whether the other end may hold a part of a message that was cut off before the line was opened."""
        return self._state.remnant

    @property
    def broke_off(self) -> bool:
        """Return whether the newest exchange broke off, so that an old answer may still arrive; see `drain`."""
        return self._state.late > 0

    # -- messages ---------------------------------------------------------------------------

    def write(self, *parts: Bytes) -> None:
        """Send all parts, in their order, as one message.

        Raises:
            DeviceTimeout: the other side accepts no more bytes.
            NotConnected: the line is closed or broken, or an earlier message was cut off.
        """
        with self._lock:
            self._require_open()
            if self._state.cut:
                raise NotConnected(f"a message to {self.uri} was cut off; close and open the line")
            if self._is_new:
                self._discard_old()
            self._show("->", *parts)
            self._newest = bytes(parts[0][:_KEPT]) if parts else b""
            self._state.begin_message(self.timeout)
            if not self._interrupted:
                try:
                    self._send(parts)
                except NotConnected:
                    self._lose()
                    raise
                self.sent += sum(map(len, parts))
            self._state.end_message()

    def read(self, count: int, patience: float = 0.0) -> bytearray:
        """Read exactly ``count`` bytes.

        Args:
            count: number of bytes.
            patience: additional time for the first byte, in seconds, on top of the timeout, such as the time to settle.

        Raises:
            DeviceTimeout: fewer bytes arrived in time, or they arrived too slowly.
            NotConnected: the line is closed or broken.
        """
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), patience)
        return buffer

    def read_into(self, view: memoryview, patience: float = 0.0) -> None:
        """Read exactly as many bytes as ``view`` has, and write them into it; see `read`."""
        with self._lock:
            self._require_open()
            self._state.begin_answer(self.timeout + patience, patience)
            self._fill(view, self.timeout + patience)
            self._state.end_answer()
            self._show("<-", view)

    def read_until(self, end: bytes, limit: int, patience: float = 0.0) -> bytearray:
        """Read all bytes up to and including ``end``, byte by byte; use this for short lines of text only.

        Raises:
            ProtocolError: the first ``limit`` bytes do not contain ``end``.
            DeviceTimeout, NotConnected: see `read`.
        """
        with self._lock:
            self._require_open()
            self._state.begin_answer(self.timeout + patience, patience)
            line, byte, wait = bytearray(), memoryview(bytearray(1)), self.timeout + patience
            while not line.endswith(end):
                if len(line) >= limit:
                    raise ProtocolError(f"{self.uri} sent {limit} bytes without an end of line: {bytes(line[:40])!r}")
                self._fill(byte, wait, line)
                line += byte
                wait = self.timeout
            self._state.end_answer()
            self._show("<-", line)
            return line

    def refuse_echo(self, answer: Bytes) -> None:
        """Refuse an answer that is the newest message, sent back by the line or the instrument.

        Args:
            answer: first line of the answer, or all of it.

        Raises:
            ProtocolError: the answer consists of, or its first line is, the message.
        """
        said, heard = self._newest.rstrip(b"\r\n"), bytes(answer[: _KEPT + 1]).lstrip(b"\r\n")
        if said and heard.startswith(said) and heard[len(said) : len(said) + 1] in (b"", b"\r", b"\n"):
            raise self.echo_error()

    def echo_error(self) -> ProtocolError:
        """Return the error for an answer that is the newest message, sent back."""
        return ProtocolError(
            f"the line echoes what is sent to {self.uri}; switch the echo of the instrument or of its adapter off"
        )

    # -- after a fault ----------------------------------------------------------------------

    def flush(self) -> None:
        """Discard all bytes that have arrived, and all bytes that follow without a pause.

        Use this where late answers are recognised by their numbers; use `drain` elsewhere.
        """
        with self._lock:
            self._require_open()
            gone, until = 0, time.monotonic() + _FLUSH
            scratch = memoryview(bytearray(self._piece))
            while time.monotonic() < until:
                arrived = self._take(scratch, 0.0)
                if not arrived:
                    break
                gone += arrived
            self._is_new = False
            if gone:
                _log.debug("%s: %d bytes discarded", self.uri, gone)

    def drain(self) -> int:
        """Discard bytes until no answer to an earlier message can arrive any more; return their number.

        If the newest read timed out, wait for a late answer for 1.25 times as long again (at least 0.1 s more). If the
        exchange was broken off by another exception, such as KeyboardInterrupt, wait for as long as the read would
        have waited. Otherwise wait for ``silence`` seconds. As soon as bytes arrive, wait for a silence only, unless an
        answer stopped half-way or several answers may be outstanding.

        Raises:
            ProtocolError: the other side does not stop sending.
            NotConnected: the line is closed or broken.
        """
        with self._lock:
            self._require_open()
            state = self._state
            first = max(self.silence, state.late or (self.timeout if state.unanswered else 0.0))
            quiet = first if state.uneven else self.silence
            if state.late or state.unanswered:
                self._abort()
            # An interruption of this method leaves the line marked.
            state.break_off(first)
            gone, wait, start = 0, first, time.monotonic()
            limit = first + (self._grace() if self.deadline is None else self.deadline)
            scratch = memoryview(bytearray(self._piece))
            # Some transports wait until all requested bytes have arrived, so wait for one byte only.
            while arrived := self._take(scratch[:1], wait):
                gone, wait = gone + arrived, quiet
                gone += self._take(scratch, 0.0)
                if time.monotonic() - start > limit:
                    raise ProtocolError(
                        f"{self.uri} does not stop sending: {gone} bytes came in {time.monotonic() - start:.3g} s "
                        f"without a request; check the instrument"
                    )
            state.clear()
            self._is_new = False
            _log.debug("%s: %d bytes discarded", self.uri, gone)
            return gone

    def break_off(self) -> None:
        """Note that the caller broke off an exchange, so that its answer may still arrive; see `drain`."""
        self._state.break_off(self.timeout + self._state.patience)

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """Cut the line in both directions within a ``with`` block, for tests."""
        with self._lock:
            self._interrupted = True
        try:
            yield
        finally:
            with self._lock:
                self._interrupted = False

    # -- to implement -----------------------------------------------------------------------

    @abstractmethod
    def _send(self, parts: tuple[Bytes, ...]) -> None:
        """Send all parts, or raise `astralora.devices.DeviceTimeout` or `astralora.devices.NotConnected`."""

    def _abort(self) -> None:
        """Tell the other end to drop its unfinished answer, where the line has a command for this."""

    # -- called while the lock is held ------------------------------------------------------

    def _opened(self) -> None:
        self._state.reopen(self.forgets)
        self._is_new = True

    def _discard_old(self) -> None:
        """Discard what arrived before the first message."""
        if self._state.late:
            self.drain()
        else:
            self.flush()

    def _fill(self, view: memoryview, wait: float, before: Bytes | None = None) -> None:
        """Fill ``view``; ``before`` is the beginning of a line of text of unknown length."""
        state, got, start = self._state, 0, time.monotonic()
        elapsed, ends = 0.0, False
        while got < len(view):
            if self.deadline is not None:
                left = self.deadline + state.patience - state.waited - elapsed
                wait, ends = max(_TICK, min(wait, left)), left <= wait
            arrived = self._take(view[got:] if got else view, wait)
            got += arrived
            elapsed = time.monotonic() - start
            # A timeout of the operating system may end a little early. The sum is compared first, because it is cheap.
            spent = state.waited + elapsed
            is_long = self.deadline is not None or spent > self.timeout
            too_slow = (ends and not arrived) or (is_long and spent > self._allowance(state.arrived + got))
            if too_slow or not arrived:
                self._give_up(view[:got], len(view), before, wait, spent if too_slow else None)
            wait = self.timeout
        state.waited += elapsed
        state.arrived += got
        self.received += got
        self._is_new = False

    def _give_up(self, got: memoryview, due: int, line: Bytes | None, wait: float, spent: float | None) -> NoReturn:
        """Raise `DeviceTimeout` for an incomplete answer: after silence, or after ``spent`` seconds in all."""
        state = self._state
        known = f"{len(got)} of {due} bytes" if line is None else f"{len(line) + len(got)} bytes of a line"
        total = state.arrived + len(got)
        self._show("<-", *([got] if line is None else [line, got]))
        state.time_out(wait, total)
        if spent is None:
            raise DeviceTimeout(
                f"{self.uri} sent nothing for {wait:g} s after {known}; "
                f"check that the instrument is on, or raise the timeout"
            )
        raise DeviceTimeout(
            f"{self.uri} sent only {total} bytes in {spent:.3g} s, which is too slow for an answer; "
            f"check the line and its speed, or raise the deadline"
        )

    def _grace(self) -> float:
        return max(_LEAST, _TIMEOUTS * self.timeout)

    def _allowance(self, count: int) -> float:
        """Return the longest time for the first ``count`` bytes of an answer, in seconds."""
        limit = self.deadline
        return self._state.patience + (self._grace() + count * self.slowest if limit is None else limit)

    def _take(self, view: memoryview, seconds: float) -> int:
        if self._interrupted:
            time.sleep(seconds)
            return 0
        try:
            return self._receive(view, seconds)
        except NotConnected:
            self._lose()
            raise

    def _show(self, direction: str, *parts: Bytes) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            data = b"".join(bytes(part[:_SHOWN]) for part in parts)[:_SHOWN]
            total = sum(map(len, parts))
            more = " ..." if total > len(data) else ""
            _log.debug("%s %s %d bytes: %s%s", self.uri, direction, total, data.hex(" "), more)
