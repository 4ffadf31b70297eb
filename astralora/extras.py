"""Libraries that are needed only by those who use them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import ConfigurationError

__all__ = ["require"]


def require(module: str, purpose: str, extra: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: its full name; the distribution is called as its first part.
        purpose: what needs it, in the singular, for the message.
        extra: what brings it.

    Raises:
        ConfigurationError: it is not installed, with the extra that brings it.
    """
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != library:
            raise
        raise ConfigurationError(
            f"{purpose} needs {library}, which is not installed; pip install 'astralora[{extra}]'"
        ) from None
