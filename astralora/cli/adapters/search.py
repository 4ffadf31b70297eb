"""Provide ``astralora adapters search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options as o
from ..command import command
from ..console import out, print_json
from ..output import check_file, write_file
from .options import AdapterFile, Groups

if TYPE_CHECKING:
    from ...adapters.config import AdapterConfig

__all__ = ["search"]


@command
def search(
    scores: Annotated[
        Path,
        typer.Argument(
            metavar="SCORES", help="File of 'astralora adapters score', or frequency.toml of a dynamic run."
        ),
    ],
    base: AdapterFile = None,
    turn_on: o.TurnOn[float] = 0.25,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="N", help="Rank of adapters that are on. (default: as in --adapters)", min=1),
    ] = None,
    groups: Groups = "combined",
    mode: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="topk: the best adapters at one rank; proportional: ranks in proportion to scores, with the same "
            "number of parameters.",
        ),
    ] = "topk",
    seed: o.Seed[int] = 0,
    output: o.OutFile[Path] = Path("adapters.toml"),
    json: o.Json = False,
) -> None:
    """Choose adapters by their scores, and write which are on and which are off, layer by layer.

    --adapters names a file whose defaults are kept. 'astralora adapters train --adapters' reads the file of --out.

    Example: astralora adapters search scores.toml --turn-on 0.25 --rank 8
    """
    from ...adapters.config import AdapterConfig
    from ...adapters.scoring import Scores
    from ...adapters.search import search as run_search

    check_file(output, ".toml")
    found = run_search(
        Scores.load(scores),
        None if base is None else AdapterConfig.load(base),
        turn_on=turn_on,
        rank=rank,
        groups=groups,  # type: ignore[arg-type]  # the search checks both
        mode=mode,  # type: ignore[arg-type]
        seed=seed,
    )
    write_file(output, found.to_toml())
    ranks, count = _ranks(found)
    if json:
        print_json({"on": ranks, "off": count - len(ranks)})
        return
    for key, value in ranks.items():
        out.print(f"{key}  rank {value}", highlight=False)
    out.print(f"adapters: {output}", soft_wrap=True)


def _ranks(found: AdapterConfig) -> tuple[dict[str, int], int]:
    """Return the ranks of the adapters that are on, by key, and the number of all adapters."""
    layers = {key: table for key, table in found.to_tables().items() if key.startswith("model_layer_")}
    rows = {f"{layer}.{name}": row for layer, table in layers.items() for name, row in table.items()}
    return {key: row["r"] for key, row in rows.items() if "r" in row}, len(rows)
