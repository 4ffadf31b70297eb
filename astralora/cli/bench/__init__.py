"""Provide ``astralora bench``, which measures astralora itself."""

import typer

from ..command import add_command
from .chips import drift, identification, simulators
from .gradients import efficiency, fidelity, overhead, refresh
from .lowrank import adapters, lowrank
from .wires import session, transport

__all__ = ["bench"]

bench = typer.Typer(help="Run benchmarks of astralora itself.", no_args_is_help=True)
for function in (
    efficiency,
    fidelity,
    overhead,
    refresh,
    simulators,
    identification,
    drift,
    lowrank,
    adapters,
    session,
    transport,
):
    add_command(bench, function)
