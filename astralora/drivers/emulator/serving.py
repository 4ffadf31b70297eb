"""Serve hosts on a port, in a separate thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Self

from .ports import Port

__all__ = ["PortServer"]


class PortServer(ABC):
    """Serve hosts on a port, in a separate thread: implement `_run`.

    Use it as a context manager, or call `start` and `stop`.

    Args:
        port: port to listen on; the server closes it.

    Attributes:
        port: port that the server listens on.
        uri: address to give to the driver.
    """

    def __init__(self, port: Port) -> None:
        self.port = port
        self.uri = port.uri
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"astralora server {self.uri}", daemon=True)

    def start(self) -> Self:
        """Start to answer requests."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop answering requests, and close the port."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.port.close()

    def wait(self) -> None:
        """Block until `stop` is called or the calling thread is interrupted."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _run(self) -> None:
        """Serve one host after the other until ``self._stop`` is set."""
