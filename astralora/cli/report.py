"""Provide ``astralora report``, which writes the page of an earlier result."""

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
from ..reports import calibration_report, check_report, run_report
from ..training import RunFolder, recall_run
from . import options as o
from .command import command
from .console import out, print_json
from .output import check_file, write_file

__all__ = ["report"]


@command
def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of a run, a calibration such as chip.cal.json, or the JSON that 'astralora check' writes.",
        ),
    ],
    output: o.OutFile[Path | None] = None,
    json: o.Json = False,
) -> None:
    """Write the HTML page of a run, a calibration or a check: one file that needs no network.

    The page is written beside the source unless --out is given.

    Example: astralora report chip.cal.json --out chip.html
    """
    path = output or (source / "report.html" if source.is_dir() else source.with_suffix(".html"))
    check_file(path)
    write_file(path, _page(source))
    if json:
        print_json({"report": str(path)})
    else:
        out.print(f"report: {path}", highlight=False, soft_wrap=True)


def _page(source: Path) -> bytes:
    """Make the page of a run, a calibration or a check, from its files."""
    if source.is_dir():
        folder = RunFolder.reopen(source)
        return run_report(recall_run(folder), folder.config.to_toml())["report.html"]
    content = _load_json(source)
    if "tensors_file" in content:
        return calibration_report(Calibration.load(source))
    if "characterisation" not in content or "checks" not in content:
        raise ConfigurationError(f"{source} holds neither a calibration nor the JSON that 'astralora check' writes")
    try:
        measured = content["characterisation"]
        return check_report(
            [CheckResult(**result) for result in content["checks"]],
            None if measured is None else Characterisation.model_validate(measured),
        )
    except (TypeError, ValidationError) as error:
        raise ConfigurationError(f"{source} holds a check that cannot be read: {str(error).splitlines()[0]}") from None


def _load_json(source: Path) -> dict[str, Any]:
    try:
        content = json_module.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigurationError(f"{source} is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
