"""``astralora adapters search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...common.errors import ConfigurationError
from ...devices.files import write_atomically
from .. import options as o
from ..console import one_sentence_errors, out, print_json

__all__ = ["search"]


@one_sentence_errors
def search(
    scores: Annotated[
        Path, typer.Argument(help="As 'astralora adapters score' wrote them, or a dynamic run's frequency.toml.")
    ],
    base: Annotated[
        Path | None, typer.Option("--adapters", help="TOML file whose defaults to keep.", dir_okay=False)
    ] = None,
    turn_on: Annotated[float, typer.Option(help="Share of the adapters that are on.", min=0.0, max=1.0)] = 0.25,
    rank: Annotated[int | None, typer.Option("--rank", "-r", help="Of those on. (default: the base's)", min=1)] = None,
    groups: Annotated[
        str, typer.Option(help="Rank LoRA and shortcuts combined or separated, or leave shortcuts off.")
    ] = "combined",
    mode: Annotated[
        str, typer.Option(help="topk: the best at one rank; proportional: ranks by scores, for as many numbers.")
    ] = "topk",
    seed: Annotated[int, typer.Option(help="Of the order of equal scores.", min=0)] = 0,
    output: Annotated[
        Path, typer.Option("--out", "-o", help="The adapters, for 'train --adapters'.", dir_okay=False)
    ] = Path("adapters.toml"),
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Choose adapters by their scores, and write which are on and which are off, layer by layer.

    Example: astralora adapters search scores.toml --turn-on 0.25 --rank 8 -o adapters.toml
    """
    from ...adapters.config import AdapterConfig
    from ...adapters.scoring import Scores
    from ...adapters.search import search as run_search

    found = run_search(
        Scores.load(scores),
        None if base is None else AdapterConfig.load(base),
        turn_on=turn_on,
        rank=rank,
        groups=groups,  # type: ignore[arg-type]  # checked there
        mode=mode,  # type: ignore[arg-type]
        seed=seed,
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, found.to_toml())
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}") from None
    layers = {key: table for key, table in found.to_tables().items() if key.startswith("model_layer_")}
    rows = {f"{layer}.{name}": row for layer, table in layers.items() for name, row in table.items()}
    ranks = {key: row["r"] for key, row in rows.items() if "r" in row}
    if json:
        print_json({"on": ranks, "off": len(rows) - len(ranks)})
        return
    for key, value in ranks.items():
        out.print(f"{key}  rank {value}", highlight=False)
    out.print(f"adapters: {output}", soft_wrap=True)
