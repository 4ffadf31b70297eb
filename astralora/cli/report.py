"""``astralora report``: pages of what was found earlier."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from ..characterisation import Characterisation
from ..common.errors import ConfigurationError
from ..devices import Calibration
from ..devices.testing import CheckResult
from ..reports import calibration_report, check_report, run_report, write_report
from ..training import RunFolder, recall_run
from . import options as o
from .console import one_sentence_errors, out

__all__ = ["report"]


@one_sentence_errors
def report(
    source: Annotated[
        Path,
        typer.Argument(help="A run's folder, a calibration such as chip.cal.json, or what 'check --json' printed."),
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page. (default: beside the source)", dir_okay=False)
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Write the page of a run, a calibration or a check, anew or elsewhere: one file that needs no network.

    Example: astralora report chip.cal.json -o chip.html
    """
    place = output or (source / "report.html" if source.is_dir() else source.with_suffix(".html"))
    write_report(place, _page(source))
    out.print(f"report: {place}", highlight=False, soft_wrap=True)


def _page(source: Path) -> bytes:
    if source.is_dir():
        folder = RunFolder.reopen(source)
        return run_report(recall_run(folder), folder.config.to_toml())["report.html"]
    content = _json(source)
    if "tensors_file" in content:
        return calibration_report(Calibration.load(source))
    if "characterisation" not in content or "checks" not in content:
        raise ConfigurationError(f"{source} holds neither a calibration nor what 'astralora check --json' prints")
    try:
        measured = content["characterisation"]
        return check_report(
            [CheckResult(**result) for result in content["checks"]],
            None if measured is None else Characterisation.model_validate(measured),
        )
    except (TypeError, ValidationError) as error:
        raise ConfigurationError(f"{source} holds a check that cannot be read: {str(error).splitlines()[0]}") from None


def _json(source: Path) -> dict[str, Any]:
    try:
        content = json_module.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigurationError(f"{source} is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
