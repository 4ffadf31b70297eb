"""The command line."""

from __future__ import annotations

from typing import Annotated

import typer

from .adapters import adapters
from .bench import bench
from .calibrate import calibrate
from .check import check
from .devices import devices
from .emulate import emulate
from .plan import plan
from .report import report
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="astralora",
    help="Train PyTorch models through photonic and analog accelerators, simulated or real.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(plan)
app.command()(devices)
app.command()(emulate)
app.command()(check)
app.command()(calibrate)
app.command()(report)
app.add_typer(adapters, name="adapters")
app.add_typer(bench, name="bench")


def _version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"astralora {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
