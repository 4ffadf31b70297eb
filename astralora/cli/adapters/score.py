"""Provide ``astralora adapters score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ...common.errors import ConfigurationError
from .. import options as o
from ..command import command
from ..console import out, print_json
from ..output import check_file
from ..settings import nest
from .notes import print_warnings
from .options import AdapterOptions

if TYPE_CHECKING:
    from ...adapters.folder import AdapterFolder
    from ...adapters.run_config import AdapterRun
    from ...adapters.scoring import Scores

__all__ = ["score"]


@command
def score(
    options: AdapterOptions,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="FOLDER", help="Score the trained adapters of this finished run."),
    ] = None,
    warmup_steps: o.WarmupSteps[int] = 0,
    output: o.OutFile[Path] = Path("scores.toml"),
    json: o.Json = False,
) -> None:
    """Score every adapter of a transformer on some batches of data. --out is a TOML file.

    Example: astralora adapters score --data corpus.txt --warmup-steps 20
    """
    from ...adapters.folder import AdapterFolder
    from ...adapters.run import score_run

    folder = None if run is None else AdapterFolder(run)
    configuration = options.load() if folder is None else _config_of_run(folder, options)
    check_file(output, ".toml")
    with print_warnings():
        found = score_run(configuration, warmup_steps=warmup_steps, folder=folder)
    found.save(output)
    if json:
        print_json({"proxy": found.proxy, "batches": found.batches, "scores": dict(found.values)})
    else:
        _print_scores(found, output)


def _config_of_run(folder: AdapterFolder, options: AdapterOptions) -> AdapterRun:
    """Return the configuration of a finished run, with its scoring changed by the options."""
    given = options.given()
    others = any(not key.startswith("scoring.") for key in given)
    if options.config or options.settings or options.adapters or others:
        raise ConfigurationError(
            "--run uses the configuration of the run; besides it, give only --proxy, --batches and --perturb"
        )
    config = folder.config()
    if not given:
        return config
    tables = {
        **config.model_dump(exclude_none=True),
        "scoring": config.scoring.model_dump() | nest(given)["scoring"],
        "adapters": config.adapters.to_tables(),
    }
    return type(config).load(None, tables)


def _print_scores(found: Scores, output: Path) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("adapter")
    table.add_column(found.proxy, justify="right")
    for key, value in sorted(found.values.items(), key=lambda item: -item[1]):
        table.add_row(key, f"{value:.4g}")
    out.print(table)
    out.print(f"scores: {output}", soft_wrap=True)
