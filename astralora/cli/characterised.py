"""What ``astralora check --json`` printed, read again."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from ..characterisation import Characterisation
from ..common.errors import ConfigurationError

__all__ = ["load_characterisation"]


def load_characterisation(path: Path) -> Characterisation:
    """What was measured of a chip.

    Raises:
        ConfigurationError: nothing, or it cannot be read; in one sentence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Characterisation.model_validate(content["characterisation"])
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, ValidationError):
        raise ConfigurationError(f"{path} does not hold what 'astralora check --json' prints of a device") from None
