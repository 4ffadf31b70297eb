"""Provide ``astralora emulate``, which serves a device on a real port to test drivers without the chip."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from pydantic import PositiveInt
from rich.text import Text

from ..common.errors import ConfigurationError
from ..devices import Bench, Device, FaultPlan, make_emulator
from ..devices.emulation import Emulates
from ..devices.safety import stop_on_signals
from . import options as o
from .chip import ChipConfig, ChipOptions
from .command import command
from .console import errors, out
from .output import check_file, write_file
from .settings import validated

__all__ = ["emulate"]

_PORT = "Port"


class ServedChipConfig(ChipConfig):
    """Configure ``astralora emulate``, with the size of the device layer that ``astralora train`` trains.

    Attributes:
        in_features: number of inputs, if the device accepts it.
        out_features: number of outputs, if the device accepts it.
    """

    in_features: PositiveInt = 256
    out_features: PositiveInt = 128


class ServedChipOptions(ChipOptions):
    """Hold the options that set keys of a `ServedChipConfig`."""

    @classmethod
    def model(cls) -> type[ServedChipConfig]:
        """Return the class of the configuration."""
        return ServedChipConfig


@command
def emulate(
    chip: ServedChipOptions,
    pty: Annotated[
        bool, typer.Option("--pty", help="Speak frames on a pseudo-terminal. (default)", rich_help_panel=_PORT)
    ] = False,
    link: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Symbolic link to create to the pseudo-terminal.", rich_help_panel=_PORT),
    ] = None,
    tcp: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Speak frames on TCP.", rich_help_panel=_PORT)
    ] = None,
    scpi: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Speak SCPI on TCP.", rich_help_panel=_PORT)
    ] = None,
    i_know: Annotated[
        bool,
        typer.Option(
            "--i-know", help="Let other machines connect, although there is no password.", rich_help_panel=_PORT
        ),
    ] = False,
    faults: Annotated[
        str | None,
        typer.Option(
            metavar="PLAN", help="Faults to inject: timeout=0.01,nan=0.01,seed=3, or a TOML file. Keys: {faults}."
        ),
    ] = None,
    output: o.OutFile[Path | None] = None,
    json: o.Json = False,
) -> None:
    """Serve a device on a port as its firmware would, until Ctrl-C.

    The driver, the port and the operating system are real; only the chip is emulated. --out writes the bench file with
    which 'astralora train --device bench.toml' reaches the device.

    Example: astralora emulate --device mrr --pty --out bench.toml
    """
    address, protocol = _address(pty, link, tcp, scpi)
    served = validated(ServedChipConfig, chip.overrides()).make()
    plan = FaultPlan.parse(faults) if faults else None
    check_file(output, ".toml")
    stop_on_signals()
    emulator = make_emulator(protocol, served, address, faults=plan, public=i_know)
    try:
        emulator.start()
        bench = Bench(device=emulator.driver, options={"port": emulator.uri})
        if output is not None:
            write_file(output, tomli_w.dumps(bench.model_dump()))
        if json:
            _print_json_line(bench, served)
        else:
            _print_place(emulator, bench, served, output)
        emulator.wait()
    except KeyboardInterrupt:
        pass  # Ctrl-C is how the command ends
    finally:
        emulator.stop()
        if plan is not None:
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(emulator.injected.items()))
            errors.print(f"injected faults: {counted or 'none'}", highlight=False, soft_wrap=True)


def _address(pty: bool, link: Path | None, tcp: str | None, scpi: str | None) -> tuple[str, str]:
    """Return the address to listen at, and the protocol."""
    chosen = [name for name, given in (("--pty", pty or link), ("--tcp", tcp), ("--scpi", scpi)) if given]
    if len(chosen) > 1:
        raise ConfigurationError(f"{' and '.join(chosen)} are different ports; choose one")
    if tcp:
        return f"tcp://{tcp}", "frames"
    if scpi:
        return f"tcp://{scpi}", "scpi"
    return f"pty:{link}" if link else "pty", "frames"


def _print_json_line(bench: Bench, served: Device) -> None:
    """Print the address of the device as JSON in one line, so that scripts can read it while the command runs."""
    sys.stdout.write(json_module.dumps({**bench.model_dump(), "serial_number": served.spec.serial_number}) + "\n")
    sys.stdout.flush()


def _print_place(emulator: Emulates, bench: Bench, served: Device, output: Path | None) -> None:
    spec = served.spec
    lines = [
        f"{spec.name}, {spec.in_features} x {spec.out_features}, {spec.serial_number or 'without a serial number'}",
        f"listens at {emulator.uri}",
        f"drive it with: astralora train --device {output} --in-features {spec.in_features} "
        f"--out-features {spec.out_features}"
        if output is not None
        else f"a bench file for it:\n\n{tomli_w.dumps(bench.model_dump())}",
        "Ctrl-C ends it.",
    ]
    for line in lines:
        # Users copy paths and addresses, so they are neither wrapped nor coloured.
        out.print(Text(line), soft_wrap=True)
