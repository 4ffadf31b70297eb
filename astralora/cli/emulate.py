"""``astralora emulate``: a device on a real port, for testing drivers without the chip."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import tomli_w
import typer
from rich.text import Text

from ..common.errors import ConfigurationError
from ..devices import Bench, FaultPlan, make_emulator, offer_device
from ..devices.safety import stop_on_signals
from . import options as o
from .console import errors, one_sentence_errors, out

__all__ = ["emulate"]

_PORT, _DEVICE = "Port", "Device"


@one_sentence_errors
def emulate(
    device: Annotated[str, typer.Argument(help="Registered device, or a bench file; see 'astralora devices'.")],
    pty: Annotated[
        bool, typer.Option("--pty", help="Speak frames on a pseudo-terminal. (default)", rich_help_panel=_PORT)
    ] = False,
    link: Annotated[
        Path | None, typer.Option(help="Name of the pseudo-terminal: a link of this name.", rich_help_panel=_PORT)
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
            "--i-know", help="Let other machines connect, though nobody is asked for a password.", rich_help_panel=_PORT
        ),
    ] = False,
    faults: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="What goes wrong on purpose: timeout=0.01,nan=0.01,seed=3, or a TOML file."),
    ] = None,
    bench: Annotated[Path | None, typer.Option(help="Write the bench file that leads here.", dir_okay=False)] = None,
    in_features: Annotated[int, typer.Option(help="Inputs.", min=1, rich_help_panel=_DEVICE)] = 256,
    out_features: Annotated[int, typer.Option(help="Outputs.", min=1, rich_help_panel=_DEVICE)] = 128,
    impairments: Annotated[
        str, typer.Option(help="Of a simulated device: ideal, lab or harsh.", rich_help_panel=_DEVICE)
    ] = "lab",
    seed: Annotated[int, typer.Option(help="Which simulated chip.", min=0, rich_help_panel=_DEVICE)] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any option of the device, such as response=power.", rich_help_panel=_DEVICE),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Tell where it listens as one line of JSON.")] = False,
    debug: o.Debug = False,
) -> None:
    """Serve a device on a port as its firmware would, until Ctrl-C.

    The driver, the port and the operating system are the real ones; only the chip is not.

    Example: astralora emulate mrr --pty --bench bench.toml, and beside it: astralora train --device bench.toml
    """
    address, protocol = _address(pty, link, tcp, scpi)
    offered = {"in_features": in_features, "out_features": out_features, "impairments": impairments, "seed": seed}
    given = o.parse_settings(settings)
    served = offer_device(device, {key: value for key, value in offered.items() if key not in given}, **given)
    plan = FaultPlan.parse(faults) if faults else None
    stop_on_signals()
    emulator = make_emulator(protocol, served, address, faults=plan, public=i_know)
    try:
        emulator.start()
        place = Bench(device=emulator.driver, options={"port": emulator.uri})
        if bench is not None:
            try:
                place.save(bench)
            except OSError as error:
                raise ConfigurationError(f"{bench} cannot be written: {error.strerror or error}") from None
        spec = served.spec
        if json:
            line = {**place.model_dump(), "serial_number": spec.serial_number}
            sys.stdout.write(json_module.dumps(line) + "\n")
            sys.stdout.flush()
        else:
            _tell(f"{spec.name}, {spec.in_features} x {spec.out_features}, {spec.serial_number or 'without a number'}")
            _tell(f"listens at {emulator.uri}")
            if bench is not None:
                _tell(f"drive it with: astralora train --device {bench}")
            else:
                _tell(f"a bench file that leads here:\n\n{tomli_w.dumps(place.model_dump())}")
            _tell("Ctrl-C ends it.")
        emulator.wait()
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        emulator.stop()
        if plan is not None:
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(emulator.injected.items()))
            errors.print(f"faults on purpose: {counted or 'none'}", highlight=False, soft_wrap=True)


def _address(pty: bool, link: Path | None, tcp: str | None, scpi: str | None) -> tuple[str, str]:
    chosen = [name for name, on in (("--pty", pty or link), ("--tcp", tcp), ("--scpi", scpi)) if on]
    if len(chosen) > 1:
        raise ConfigurationError(f"{' and '.join(chosen)} are different ports; choose one")
    if tcp:
        return f"tcp://{tcp}", "frames"
    if scpi:
        return f"tcp://{scpi}", "scpi"
    return f"pty:{link}" if link else "pty", "frames"


def _tell(text: str) -> None:
    # Paths and addresses are to be copied: neither wrapped nor coloured in.
    out.print(Text(text), soft_wrap=True)
