"""What drivers at the end of a line of bytes share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import DeviceSpec, HardwareDevice
from .transports import Transport

__all__ = ["LinkDevice", "ProtocolDevice"]


class LinkDevice(HardwareDevice):
    """A driver on a `Transport`: what is stuck in the line can be flushed, and the line be cut for a test.

    Args:
        spec: what the device promises.
        transport: closed; opened and closed with the device.
    """

    def __init__(self, spec: DeviceSpec, transport: Transport) -> None:
        super().__init__(spec)
        self.transport = transport

    def flush(self) -> None:
        """Discard whatever has arrived on the line and was not asked for."""
        with self._lock:
            self.transport.flush()

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """For tests: within this block nothing passes along the line."""
        with self.transport.interrupted():
            yield


class ProtocolDevice(LinkDevice):
    """One whose answers are read into memory of their own, and need not be copied."""

    def _as_tensor(self, outputs: NDArray[Any], like: Tensor) -> Tensor:
        return torch.from_numpy(outputs).to(like)
