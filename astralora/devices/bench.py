"""Benches: files that say which device there is, and how it is reached."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import DeviceError
from .files import write_atomically

__all__ = ["Bench"]


class Bench(BaseModel):
    """What stands on the bench: a registered device, and the options that its factory takes.

    A file of it is TOML, and takes the place of a device's name wherever one is asked for::

        device = "frame-mvm"

        [options]
        port = "serial:///dev/ttyUSB0?baudrate=921600"

    Attributes:
        device: a registered name.
        options: for the device's factory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(min_length=1)
    options: dict[str, Any] = {}

    @field_validator("device")
    @classmethod
    def _is_no_bench(cls, device: str) -> str:
        # Else a bench could lead to itself.
        if device.endswith(".toml"):
            raise ValueError("a bench names a registered device, not another bench")
        return device

    @classmethod
    def load(cls, path: str | Path) -> Bench:
        """Read a file.

        Raises:
            DeviceError: there is none, or it says something else, in one sentence.
        """
        try:
            return cls.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise DeviceError(f"the bench {path} cannot be read: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DeviceError(f"the bench {path} is not TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            known = "; known are device, options" if first["type"] == "extra_forbidden" else ""
            raise DeviceError(f"the bench {path}: {place}: {first['msg']}{known}") from None

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(Path(path), tomli_w.dumps(self.model_dump()))
