"""The benchmark of low-rank training."""

from __future__ import annotations

from typing import Annotated

import typer

from ... import benchmarks
from .. import options as o
from ..console import one_sentence_errors, out, print_json
from .common import Out, Steps, grouped, make_table, numbers, save, say_where, span, spread, words

__all__ = ["lowrank"]


@one_sentence_errors
def lowrank(
    methods: Annotated[
        str,
        typer.Option("--methods", help="Known are adam, flora, flora-8bit, flora-published, oialr and oialr-flora."),
    ] = "adam,flora,oialr",
    seeds: Annotated[str, typer.Option("--seeds", help="Of weights and data, with commas between them.")] = "0,1,2",
    steps: Annotated[int, typer.Option(help="Of training, for every method.", min=1)] = 1500,
    width: Annotated[int, typer.Option(help="Of the model, a multiple of 16.", min=16)] = 64,
    layers: Annotated[int, typer.Option(help="Of the model.", min=1)] = 2,
    rank: Annotated[int | None, typer.Option(help="(default: an eighth of the width)", min=1)] = None,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Train a small OPT on English text with little optimizer state or few trained numbers, and with Adam.

    Learning rates are chosen first, on another seed, from as many for every method.

    Example: astralora bench lowrank --methods adam,flora --seeds 0
    """
    with Steps("runs") as progress:
        records = benchmarks.lowrank(
            words(methods),
            numbers("--seeds", seeds),
            steps=steps,
            width=width,
            layers=layers,
            rank=rank,
            listener=lambda _, total: progress.advance(total),
        )
    folder = save("lowrank", output, records, benchmarks.lowrank_png(records))
    if json:
        print_json(records)
        return
    table = make_table("method", "rate", "test loss", "state bytes", "trainable", "total")
    for (name, rate), group in grouped([r for r in records if r["part"] == "run"], ("method", "rate")):
        table.add_row(
            name,
            f"{rate:g}",
            spread([r["test_loss"] for r in group]),
            span([record["state_bytes"] for record in group]),
            span([record["trainable"] for record in group]),
            span([record["total"] for record in group]),
        )
    out.print(table)
    out.print("Nats a byte, mean and range over the seeds; numbers are those at the end.", style="dim")
    say_where(folder)
