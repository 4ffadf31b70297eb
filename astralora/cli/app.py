"""Assemble the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from .adapters import adapters
from .bench import bench
from .calibrate import calibrate
from .check import check
from .command import add_command
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
for function in (train, plan, devices, emulate, check, calibrate, report):
    add_command(app, function)
app.add_typer(adapters, name="adapters")
app.add_typer(bench, name="bench")


def _print_version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"astralora {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app()
