"""``astralora bench``: measurements of astralora itself."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..benchmarks import session_overhead
from .console import one_sentence_errors, out, print_json
from .options import Debug, Json

__all__ = ["bench"]

bench = typer.Typer(help="Measure astralora itself.", no_args_is_help=True)


@bench.callback()
def _root() -> None:
    pass


@bench.command()
@one_sentence_errors
def session(
    device: Annotated[str, typer.Option(help="Registered device.")] = "matvec",
    impairments: Annotated[str, typer.Option(help="Of a simulated device.")] = "ideal",
    size: Annotated[int, typer.Option(help="Inputs and outputs.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Vectors per query.", min=1)] = 256,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements.", min=10)] = 2000,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Time a query through a session against the same query on the bare device.

    Example: astralora bench session --device mrr --impairments lab
    """
    result = session_overhead(device, impairments, size, batch, rounds)
    if json:
        print_json([result])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("bare query, median", f"{result['raw_us']:.1f} us")
    table.add_row("through a session, median", f"{result['session_us']:.1f} us")
    table.add_row(
        "overhead",
        f"{100 * result['overhead']:.1f} %  (quartiles "
        f"{100 * result['overhead_low']:.1f} to {100 * result['overhead_high']:.1f} %)",
    )
    out.print(table)
