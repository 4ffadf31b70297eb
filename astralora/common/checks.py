"""Check numbers that users give as options."""

from __future__ import annotations

from .errors import ConfigurationError

__all__ = ["check_share", "check_whole"]


def check_whole(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number of at least ``least``, and refuse everything else.

    Args:
        name: name of the option, for the message.
        value: value that the user gave.
        least: smallest value allowed.

    Raises:
        ConfigurationError: the value is not a whole number, or it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def check_share(name: str, value: object) -> float:
    """Return a number between 0 and 1, and refuse everything else.

    Args:
        name: name of the option, for the message.
        value: value that the user gave.

    Raises:
        ConfigurationError: the value is not a number, or it is outside this range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigurationError(f"{name} must be between 0 and 1, not {value!r}")
    return float(value)
