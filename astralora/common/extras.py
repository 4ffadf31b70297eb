"""Import optional libraries only when they are needed."""

from __future__ import annotations

from typing import Any

from ..devices.extras import require as require_for
from .errors import ConfigurationError

__all__ = ["require"]


def require(module: str, purpose: str, extra: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: full name of the module; the distribution has the name of its first part.
        purpose: name of the feature that needs the library, in the singular, for the message.
        extra: extra of astralora that installs the library.

    Raises:
        ConfigurationError: the library is not installed; the message names the extra.
    """
    return require_for(module, f"{purpose} needs", extra, error=ConfigurationError)
