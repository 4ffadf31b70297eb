"""``astralora check``: does a device do what its spec says?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from devices import offer_device
from devices.testing import CheckResult, check_device

from . import options as o
from .console import errors, one_sentence_errors, out, print_json

__all__ = ["check"]


@one_sentence_errors
def check(
    device: Annotated[str, typer.Argument(help="Registered device, or a bench file; see 'astralora devices'.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Name of a check; may be repeated. (default: all)")
    ] = None,
    in_features: Annotated[int, typer.Option(help="Inputs, of a device that can be had in any size.", min=1)] = 16,
    out_features: Annotated[int, typer.Option(help="Outputs, of a device that can be had in any size.", min=1)] = 16,
    impairments: Annotated[str, typer.Option(help="Of a simulated device: ideal, lab or harsh.")] = "lab",
    seed: Annotated[int, typer.Option(help="Of controls and inputs, and of a simulated chip.", min=0)] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of the device, such as port=tcp://127.0.0.1:5000.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a list of {check, passed, detail}.")] = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Check a device against the contract and its own spec.

    Ranges, levels, linearity, coupling and noise are measured; shapes, types, errors, recovery, counters and threads
    are tried out. Some 80 programs are spent, all over the range of the controls, and 1,000 vectors, or 50,000 where
    there is noise. The exit code is 1 when a check fails.

    Example: astralora check bench.toml
    """
    offered = {"in_features": in_features, "out_features": out_features, "impairments": impairments, "seed": seed}
    given = o.parse_settings(settings)
    offered = {key: value for key, value in offered.items() if key not in given}

    def show(result: CheckResult) -> None:
        skipped = result.passed and result.detail
        mark = Text("failed", "bold red") if not result.passed else Text("-" if skipped else "ok", "green")
        line = Text.assemble(f"{result.check:<26}", mark)
        if result.detail:
            line.append(f"  {result.detail}", "" if not result.passed else "dim")
        out.print(line, soft_wrap=True)

    # Made once before: what is wrong with the name or the options is no failed check.
    offer_device(device, offered, **given)
    results = check_device(
        lambda: offer_device(device, offered, **given), seed=seed, only=only, listener=None if json else show
    )
    failed = [result for result in results if not result.passed]
    if json:
        print_json([asdict(result) for result in results])
    elif failed:
        errors.print(f"{len(failed)} of {len(results)} checks failed.", style="bold red", highlight=False)
    else:
        out.print(f"all {len(results)} checks passed.", style="green", highlight=False)
    if failed:
        raise typer.Exit(1)
