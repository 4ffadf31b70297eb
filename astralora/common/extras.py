"""Libraries that are needed only by those who use them."""

from __future__ import annotations

from typing import Any

from ..devices.extras import require as require_for
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
    return require_for(module, f"{purpose} needs", extra, error=ConfigurationError)
