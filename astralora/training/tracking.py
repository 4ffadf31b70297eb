"""Write TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from ..common.errors import ConfigurationError
from ..devices.files import write_errors
from .fit import Record

__all__ = ["Tracker"]

_REMEDY = "mend this, and resume the run with --resume"


class Tracker:
    """Write every number of every record as a TensorBoard scalar; do nothing without the ``tracking`` extra.

    Events are written at once and in this thread. The writer of TensorBoard itself writes them in another thread, which
    reports a full disk by a traceback of its own.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def __enter__(self) -> Self:
        if find_spec("tensorboard") is not None:
            from tensorboard.summary.writer.record_writer import RecordWriter

            name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
            with write_errors(self._folder, error=ConfigurationError, remedy=_REMEDY):
                self._folder.mkdir(exist_ok=True)
                self._writer = RecordWriter((self._folder / name).open("wb"))
            self._add(file_version="brain.Event:2")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        if kind is not None:  # an earlier problem is reported already
            with suppress(OSError):
                self._writer.close()
            return
        with write_errors(self._folder, error=ConfigurationError, remedy=_REMEDY):
            self._writer.close()

    def write(self, record: Record) -> None:
        """Write the numbers of a record at its step.

        Raises:
            ConfigurationError: they cannot be written.
        """
        if self._writer is None:
            return
        values = [
            {"tag": f"{record['event']}/{name}", "simple_value": float(value)}
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "epoch")
        ]
        self._add(step=record["step"], summary={"value": values})

    def _add(self, **fields: Any) -> None:
        """Write one event."""
        from tensorboard.compat.proto.event_pb2 import Event

        with write_errors(self._folder, error=ConfigurationError, remedy=_REMEDY):
            self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
            self._writer.flush()
