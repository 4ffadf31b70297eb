"""Check the values of options."""

from __future__ import annotations

from typing import Any

from .errors import ConfigurationError

__all__ = ["whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a value that must be a whole number.

    Args:
        name: name of the option in the message.
        value: value that was given.
        least: smallest value allowed.

    Raises:
        ConfigurationError: it is no whole number, or smaller than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
