"""Read the measurements in a file that ``astralora check`` has written."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from ..characterisation import Characterisation
from ..common.errors import ConfigurationError

__all__ = ["load_characterisation"]


def load_characterisation(path: Path) -> Characterisation:
    """Load the measured properties of a chip.

    Raises:
        ConfigurationError: the file holds no measurements or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Characterisation.model_validate(content["characterisation"])
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, ValidationError):
        raise ConfigurationError(f"{path} does not hold the JSON that 'astralora check' writes") from None
