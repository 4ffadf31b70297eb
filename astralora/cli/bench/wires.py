"""Provide the benchmarks of the session and of wire protocols."""

from __future__ import annotations

from typing import Annotated

import typer

from ... import benchmarks
from .. import options as o
from ..command import command
from ..console import print_json, print_rows
from ..output import check_folder
from .common import parse_square, print_folder, save

__all__ = ["session", "transport"]


@command
def session(
    device: o.Device[str] = "matvec",
    impairments: o.Impairments[str] = "ideal",
    size: o.Size = "256",
    batch_size: o.BatchSize[int] = 256,
    rounds: o.Rounds = 2000,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Compare the time of a query through a session with the same query on the bare device.

    Example: astralora bench session --device mrr --impairments lab
    """
    check_folder(output)
    result = benchmarks.session_overhead(device, impairments, parse_square(size), batch_size, rounds)
    folder = save("session", output, [result])
    if json:
        print_json([result])
        return
    quartiles = f"{100 * result['overhead_low']:.1f} to {100 * result['overhead_high']:.1f} %"
    print_rows(
        {
            "bare query, median": f"{result['raw_us']:.1f} us",
            "through a session, median": f"{result['session_us']:.1f} us",
            "overhead": f"{100 * result['overhead']:.1f} %  (quartiles {quartiles})",
        }
    )
    print_folder(folder)


@command
def transport(
    protocol: Annotated[str, typer.Option("--protocol", metavar="NAME", help="Wire protocol: {protocols}.")] = "frames",
    size: o.Size = "256",
    batch_size: o.BatchSize[int] = 4096,
    rounds: o.Rounds = 500,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Compare the time of a query over a wire protocol with a bare socket that sends the same bytes.

    Example: astralora bench transport --protocol frames
    """
    check_folder(output)
    result = benchmarks.transport(protocol, parse_square(size), batch_size, rounds)
    folder = save("transport", output, [result])
    if json:
        print_json([result])
        return
    speed = f"{result['driver_megabytes_per_second']:.0f} MB/s"
    quartiles = f"{100 * result['share_low']:.0f} to {100 * result['share_high']:.0f} %"
    added, share = result["bytes_added"], 100 * result["bytes_added_share"]
    print_rows(
        {
            "bare socket, median": f"{result['socket_us']:.0f} us",
            "driver and emulator, median": f"{result['driver_us']:.0f} us  ({speed})",
            "share of the socket's throughput": f"{100 * result['share']:.0f} %  (quartiles {quartiles})",
            "bytes added by the protocol": f"{added} of {result['bytes_of_values']:,}  ({share:.3f} %)",
        }
    )
    print_folder(folder)
