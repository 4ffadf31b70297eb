"""Provide the benchmarks of low-rank training and of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ... import benchmarks
from .. import options as o
from ..command import command
from ..console import out, print_json
from ..output import check_folder
from ..progress import Count
from .common import (
    Record,
    format_range,
    group_records,
    make_table,
    mean_and_range,
    parse_numbers,
    print_folder,
    save,
    split_words,
)

__all__ = ["adapters", "lowrank"]


@command
def lowrank(
    methods: Annotated[
        str,
        typer.Option(
            "--method", metavar="NAMES", help="Methods to compare, with commas between them: {lowrank_methods}."
        ),
    ] = "adam,flora,oialr",
    seeds: o.Seeds = "0,1,2",
    steps: o.Steps[int] = 1500,
    width: o.Width = 64,
    layers: o.Layers = 2,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Rank of the method. (default: an eighth of the width)", min=1)
    ] = None,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Train a small OPT on English text with little optimizer state or few trained parameters, and with Adam.

    The learning rate of each method is chosen first, on another seed, from the same number of candidates.

    Example: astralora bench lowrank --method adam,flora --seeds 0
    """
    check_folder(output)
    with Count("runs") as count:
        records = benchmarks.lowrank(
            split_words(methods),
            parse_numbers("--seeds", seeds),
            steps=steps,
            width=width,
            layers=layers,
            rank=rank,
            listener=count.advance,
        )
    folder = save("lowrank", output, records, benchmarks.lowrank_png(records))
    if json:
        print_json(records)
    else:
        _show_lowrank(records)
        print_folder(folder)


@command
def adapters(
    methods: Annotated[
        str,
        typer.Option(
            "--method", metavar="NAMES", help="Methods to compare, with commas between them: {adapter_methods}."
        ),
    ] = "uniform,dynamic,dynamic-lora,static,random",
    seeds: o.Seeds = "0,1,2,3,4",
    steps: o.Steps[int] = 400,
    pretraining: Annotated[
        int, typer.Option(metavar="N", help="Number of earlier steps: the whole model is trained on other text.", min=1)
    ] = 1000,
    width: o.Width = 64,
    layers: o.Layers = 2,
    rank: Annotated[int, typer.Option(metavar="N", help="Rank of adapters that are on, a multiple of 5.", min=5)] = 10,
    turn_on: o.TurnOn[float] = 0.25,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Adapt a small OPT from English to source code, with a few chosen adapters and with LoRA everywhere.

    All methods train the same number of parameters at any time; uniform LoRA has the lowest rank that reaches it.

    The learning rate of each method is chosen first, on another seed, from the same number of candidates.

    Example: astralora bench adapters --method uniform,dynamic --seeds 0,1
    """
    check_folder(output)
    with Count("runs") as count:
        records = benchmarks.adapters(
            split_words(methods),
            parse_numbers("--seeds", seeds),
            steps=steps,
            pretraining=pretraining,
            width=width,
            layers=layers,
            rank=rank,
            turn_on=turn_on,
            listener=count.advance,
        )
    rows = benchmarks.summarize(records)
    verdict = benchmarks.verdict(rows)
    summary = {"rows": rows, "verdict": verdict}
    folder = save("adapters", output, records, benchmarks.adapters_png(rows), summary=summary)
    if json:
        print_json(records)
        return
    _show_adapters(rows)
    if verdict is not None:
        out.print(verdict, soft_wrap=True)
    print_folder(folder)


def _show_lowrank(records: Sequence[Record]) -> None:
    table = make_table("method", "rate", "test loss", "state bytes", "trainable", "total")
    for (name, rate), group in group_records([r for r in records if r["part"] == "run"], ("method", "rate")):
        table.add_row(
            name,
            f"{rate:g}",
            mean_and_range([r["test_loss"] for r in group]),
            *(format_range([record[what] for record in group]) for what in ("state_bytes", "trainable", "total")),
        )
    out.print(table)
    out.print("Nats per byte, mean and range over the seeds; parameters are counted at the end.", style="dim")


def _show_adapters(rows: Sequence[Record]) -> None:
    table = make_table("method", "rate", "on", "used", "trained", "test loss", "over uniform")
    for row in rows:
        table.add_row(
            row["method"],
            f"{row['rate']:g}",
            f"{row['adapters_on']}",
            f"{row['adapters_used']:.1f}",
            f"{row['trained_parameters']:,}",
            _with_error(row["test_loss"], row["standard_error"]),
            "" if row["difference"] is None else _with_error(row["difference"], row["difference_error"], sign="+"),
        )
    out.print(table)
    out.print(
        "Nats per byte, mean and standard error over the seeds; differences are to uniform on the same seeds. 'on' and "
        "'trained' are the greatest numbers at any time; 'used' counts the adapters that were ever on.",
        style="dim",
    )


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")
