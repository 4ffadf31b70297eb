"""Libraries that are needed only by those who use them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import DeviceError

__all__ = ["require"]


def require(
    module: str, needs: str, extra: str, *, distribution: str | None = None, error: type[Exception] = DeviceError
) -> Any:
    """Import a module of an optional library.

    Args:
        module: its full name.
        needs: what needs it, with the verb, to begin the message with.
        extra: what brings it.
        distribution: what it is installed as; the first part of the module's name unless given.
        error: to raise.

    Raises:
        DeviceError, or ``error``: it is not installed, with the extra that brings it.
    """
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.partition(".")[0] != library:
            raise
        raise error(
            f"{needs} {distribution or library}, which is not installed; pip install 'astralora[{extra}]'"
        ) from None
