"""Provide ``astralora adapters test``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import options as o
from ..command import command
from ..console import out, print_json
from ..output import check_file, write_json
from .notes import print_warnings

__all__ = ["evaluate"]


@command
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="File to test on. (default: the run's own test set)"),
    ] = None,
    output: o.OutFile[Path | None] = None,
    json: o.Json = False,
) -> None:
    """Test the adapters of a finished run. --out writes the result as JSON.

    Example: astralora adapters test runs/adapters-tiny-opt --data other.txt
    """
    from ...adapters.folder import AdapterFolder
    from ...adapters.run import evaluate_run

    check_file(output, ".json")
    with print_warnings():
        found = evaluate_run(AdapterFolder(run), {"test": str(data)} if data is not None else None)
    if output is not None:
        write_json(output, found)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        out.print(f"{name.replace('_', ' ')}  {value:.4f}", highlight=False)
