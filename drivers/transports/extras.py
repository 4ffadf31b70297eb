"""Libraries that are needed only by those who use them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from devices import DeviceError

__all__ = ["require"]


def require(module: str, distribution: str, purpose: str, extra: str = "hardware") -> Any:
    """Import a module of an optional library.

    Raises:
        DeviceError: it is not installed, with the extra that brings it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise DeviceError(
            f"{purpose} need {distribution}, which is not installed; pip install 'astralora[{extra}]'"
        ) from None
