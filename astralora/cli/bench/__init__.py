"""``astralora bench``: measurements of astralora itself."""

import typer

from .chips import drift, identification, simulators
from .gradients import efficiency, fidelity, overhead, refresh
from .lowrank import adapters, lowrank
from .wires import session, transport

__all__ = ["bench"]

bench = typer.Typer(help="Measure astralora itself.", no_args_is_help=True)
for command in (
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
    bench.command()(command)
