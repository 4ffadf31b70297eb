"""Answer lines of text on a port, to run a driver without its instrument."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from ..devices import DeviceError, DeviceTimeout, NotConnected
from .emulator.ports import open_port
from .emulator.serving import PortServer
from .transports import Transport

__all__ = ["TextServer"]

_log = logging.getLogger(__name__)


class TextServer(PortServer):
    """Answer lines of text on a port, to run a driver without its instrument.

    Use it as a context manager, or call `start` and `stop`. It serves one host at a time.

    Args:
        answer: function that receives a line without its end and returns the answer, or None for no answer; if it
            raises an exception, the answer is ERR and the name of the exception. Empty lines are ignored.
        address: address to listen on: ``loop://NAME``, ``tcp://127.0.0.1:0``, ``pty`` or ``pty:PATH``.

    Attributes:
        uri: address to give to the driver.

    Raises:
        DeviceError: the server cannot listen on the address.
    """

    def __init__(self, answer: Callable[[str], str | None], address: str) -> None:
        self._answer = answer
        super().__init__(open_port(address))

    def _run(self) -> None:
        while (line := self.port.accept(self._stop, lambda: None)) is not None:
            with suppress(NotConnected):
                self._serve(line)
            with suppress(DeviceError, OSError):
                line.close()

    def _serve(self, line: Transport) -> None:
        request = bytearray()
        while not self._stop.is_set():
            try:
                request += line.read(1)
            except DeviceTimeout:
                continue
            if request.endswith(b"\n"):
                text = self._answer_to(request.decode("ascii", "replace").strip())
                request.clear()
                if text is not None:
                    line.write(text.encode("ascii", "replace") + b"\n")

    def _answer_to(self, request: str) -> str | None:
        if not request:
            return None
        try:
            return self._answer(request)
        except Exception as error:
            _log.exception("%s: no answer to %r", self.uri, request[:40])
            return f"ERR {type(error).__name__}"
