"""Provide ``astralora report``, which writes the page of an earlier result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import ConfigurationError
from ..devices import Calibration
from ..devices.files import file_name
from ..devices.parsing import read_json
from ..reports import calibration_report, check_report, run_report
from ..training import RunFolder, recall_run
from . import options as o
from .check_results import parse_check
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
    check_file(path, ".html", ".htm")
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
    content = read_json(source, error=ConfigurationError)
    if "tensors_file" in content:
        return calibration_report(Calibration.load(source))
    if "characterisation" not in content or "checks" not in content:
        raise ConfigurationError(
            f"{file_name(source)} holds neither a calibration nor the JSON that 'astralora check' writes"
        )
    return check_report(*parse_check(content, source))
