"""Read and write bench files, which name a device and how to reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict, Field, ValidationError, field_validator

from .device_files import absolute_name
from .errors import DeviceError
from .files import file_name, write_file
from .parsing import read_toml
from .validation import Described, first_problem

__all__ = ["Bench"]

_WHAT = "the bench file"


class Bench(Described):
    """Describe the device on a lab's bench: its name and the options for its factory.

    A bench file is a TOML file. Every function that takes the name of a device also takes the path of a bench file::

        device = "frame-mvm"

        [options]
        port = "serial:///dev/ttyUSB0?baudrate=921600"

    Attributes:
        device: a registered name, or a factory in a Python file, such as ``mychip.py:make_chip``. In a file, a relative
            path starts from the folder of this file.
        options: options for the device's factory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("device")
    @classmethod
    def _refuse_bench(cls, device: str) -> str:
        # A bench could otherwise name itself.
        if device.endswith(".toml"):
            raise ValueError("a bench must name a registered device or FILE.py:FACTORY, not another bench file")
        return device

    @classmethod
    def load(cls, path: str | Path) -> Bench:
        """Read a bench file.

        Raises:
            DeviceError: the file does not exist, or its content is not valid; the message is one sentence.
        """
        values = read_toml(path, _WHAT)
        try:
            bench = cls.model_validate(values)
        except ValidationError as error:
            raise DeviceError(f"{file_name(path, _WHAT)}: {first_problem(error, cls.model_fields)}") from None
        return bench.model_copy(update={"device": absolute_name(bench.device, Path(path).parent)})

    def save(self, path: str | Path) -> None:
        """Write the bench file atomically: an interruption leaves no partial file.

        Raises:
            DeviceError: the file cannot be written; an earlier one is unchanged.
        """
        write_file(path, tomli_w.dumps(self.model_dump()), _WHAT)
