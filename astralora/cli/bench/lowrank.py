"""The benchmarks of low-rank training and of adapters."""

from __future__ import annotations

from typing import Annotated

import typer

from ... import benchmarks
from .. import options as o
from ..console import one_sentence_errors, out, print_json
from .common import Out, Steps, grouped, make_table, numbers, save, say_where, span, spread, words

__all__ = ["adapters", "lowrank"]


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
    debug: o.Debug = False,
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


@one_sentence_errors
def adapters(
    methods: Annotated[
        str, typer.Option("--methods", help="Known are uniform, dynamic, dynamic-lora, static and random.")
    ] = "uniform,dynamic,dynamic-lora,static,random",
    seeds: Annotated[
        str, typer.Option("--seeds", help="Of models, adapters and data, with commas between them.")
    ] = "0,1,2,3,4",
    steps: Annotated[int, typer.Option(help="Of adaptation.", min=1)] = 400,
    pretraining: Annotated[int, typer.Option(help="Steps before it, of the whole model on other text.", min=1)] = 1000,
    width: Annotated[int, typer.Option(help="Of the model, a multiple of 16.", min=16)] = 64,
    layers: Annotated[int, typer.Option(help="Of the model.", min=1)] = 2,
    rank: Annotated[int, typer.Option(help="Of an adapter that is on, a multiple of 5.", min=5)] = 10,
    turn_on: Annotated[float, typer.Option(help="Share of the adapters that are on.", min=0.0, max=1.0)] = 0.25,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Adapt a small OPT from English to source code, with a few chosen adapters and with LoRA everywhere.

    All methods train as many numbers at any time; uniform LoRA takes the least rank that comes to as many.

    Learning rates are chosen first, on another seed, from as many for every method.

    Example: astralora bench adapters --methods uniform,dynamic --seeds 0,1
    """
    with Steps("runs") as progress:
        records = benchmarks.adapters(
            words(methods),
            numbers("--seeds", seeds),
            steps=steps,
            pretraining=pretraining,
            width=width,
            layers=layers,
            rank=rank,
            turn_on=turn_on,
            listener=lambda _, total: progress.advance(total),
        )
    rows = benchmarks.summarize(records)
    sentence = benchmarks.verdict(rows)
    folder = save(
        "adapters", output, records, benchmarks.adapters_png(rows), summary={"rows": rows, "verdict": sentence}
    )
    if json:
        print_json(records)
        return
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
        "Nats a byte, mean and standard error over the seeds; differences are to uniform on the same seeds. On and "
        "trained are the most at any time, used is how many adapters were ever on.",
        style="dim",
    )
    if sentence is not None:
        out.print(sentence, soft_wrap=True)
    say_where(folder)


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")
