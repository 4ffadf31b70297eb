"""Read the results in a file that ``astralora check`` has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..characterisation import Characterisation
from ..characterisation.contents import read_characterisation
from ..common.errors import ConfigurationError
from ..devices.files import file_name
from ..devices.parsing import read_json
from ..devices.testing import CheckResult
from ..devices.validation import first_problem

__all__ = ["load_characterisation", "parse_check"]


def load_characterisation(path: Path) -> Characterisation:
    """Load the measured properties of a chip.

    Raises:
        ConfigurationError: the file holds no measurements or cannot be read.
    """
    _, measured = parse_check(read_json(path, "the result of 'astralora check'", error=ConfigurationError), path)
    if measured is None:
        raise ConfigurationError(
            f"{file_name(path)} holds checks without measurements; run 'astralora check' without --no-measure"
        )
    return measured


def parse_check(content: Mapping[str, Any], path: Path) -> tuple[list[CheckResult], Characterisation | None]:
    """Return the results of a check from the content of its file: checks, and measurements if there are any.

    Args:
        content: content of the file.
        path: path of the file, for messages.

    Raises:
        ConfigurationError: the content is not that of a check, or a part of it is missing or wrong.
    """
    if "checks" not in content or "characterisation" not in content:
        raise ConfigurationError(f"{file_name(path)} does not hold the JSON that 'astralora check' writes")
    try:
        checks = TypeAdapter(list[CheckResult]).validate_python(content["checks"])
        measured = content["characterisation"]
        return checks, None if measured is None else read_characterisation(measured)
    except ValidationError as error:
        reason = f"checks.{first_problem(error)}"
    except ValueError as error:
        reason = f"characterisation: {error}"
    raise ConfigurationError(f"{file_name(path)} holds a check that is not valid: {reason}")
