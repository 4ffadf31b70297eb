"""``astralora adapters test``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import options as o
from ..console import one_sentence_errors, out, print_json
from .notes import noted

__all__ = ["evaluate"]


@one_sentence_errors
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", file_okay=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="File to test on. (default: the run's own test set)", dir_okay=False)
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Test the adapters of a finished run.

    Example: astralora adapters test runs/adapters-tiny-opt --data other.txt
    """
    from ...adapters.folder import AdapterFolder
    from ...adapters.run import evaluate_run

    with noted():
        found = evaluate_run(AdapterFolder(run), {"test": str(data)} if data is not None else None)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        out.print(f"{name.replace('_', ' ')}  {value:.4f}", highlight=False)
