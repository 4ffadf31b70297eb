"""Write TensorBoard events if TensorBoard is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from .fit import Record

__all__ = ["Tracker"]


class Tracker:
    """Write every number of every record as a TensorBoard scalar; do nothing without the ``tracking`` extra.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __enter__(self) -> Self:
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder / "tensorboard"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, record: Record) -> None:
        """Write the numbers of a record at its step."""
        if self._writer is None:
            return
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                self._writer.add_scalar(f"{record['event']}/{name}", value, record["step"])
