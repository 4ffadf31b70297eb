"""Import optional libraries."""

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
        module: full name of the module.
        needs: beginning of the message, such as ``"remote devices need"``.
        extra: extra of astralora that installs the library.
        distribution: name for installing the library; None for the first part of the module's name.
        error: class of the error to raise.

    Raises:
        DeviceError, or ``error``: the library is not installed; the message names the extra that installs it.
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
