"""Benchmarks of what stands between a program and a chip."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ... import benchmarks
from .. import options as o
from ..console import one_sentence_errors, out, print_json

__all__ = ["session", "transport"]


@one_sentence_errors
def session(
    device: Annotated[str, typer.Option(help="Registered device.")] = "matvec",
    impairments: Annotated[str, typer.Option(help="Of a simulated device.")] = "ideal",
    size: Annotated[int, typer.Option(help="Inputs and outputs.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Vectors per query.", min=1)] = 256,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements.", min=10)] = 2000,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time a query through a session against the same query on the bare device.

    Example: astralora bench session --device mrr --impairments lab
    """
    result = benchmarks.session_overhead(device, impairments, size, batch, rounds)
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


@one_sentence_errors
def transport(
    protocol: Annotated[str, typer.Option(help="Wire protocol: frames or scpi.")] = "frames",
    size: Annotated[int, typer.Option(help="Inputs and outputs.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Vectors per query.", min=1)] = 4096,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements.", min=10)] = 500,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time a query along a wire protocol against a bare socket that copies the same bytes.

    Example: astralora bench transport --protocol frames
    """
    result = benchmarks.transport(protocol, size, batch, rounds)
    if json:
        print_json([result])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("bare socket, median", f"{result['socket_us']:.0f} us")
    speed = f"{result['driver_megabytes_per_second']:.0f} MB/s"
    table.add_row("driver and emulator, median", f"{result['driver_us']:.0f} us  ({speed})")
    quartiles = f"{100 * result['share_low']:.0f} to {100 * result['share_high']:.0f} %"
    table.add_row("share of the socket's throughput", f"{100 * result['share']:.0f} %  (quartiles {quartiles})")
    added, share = result["bytes_added"], 100 * result["bytes_added_share"]
    table.add_row("bytes added by the protocol", f"{added} of {result['bytes_of_values']:,}  ({share:.3f} %)")
    out.print(table)
