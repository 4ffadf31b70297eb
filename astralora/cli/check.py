"""``astralora check``: does a device do what its spec says?"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ..characterisation import MEASUREMENTS, Characterisation, Finding, characterise
from ..common.errors import ConfigurationError
from ..devices import Budget, Session, offer_device
from ..devices.testing import CHECKS, CheckResult, check_device
from ..reports import check_report, write_report
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
    budget_programs: Annotated[
        int | None, typer.Option(help="The most programs that measuring spends. (default: some 70)", min=1)
    ] = None,
    budget_vectors: Annotated[
        int | None, typer.Option(help="The most vectors that measuring spends. (default: what that takes)", min=1)
    ] = None,
    drift_seconds: Annotated[
        float, typer.Option(help="How long a setting is held to see it drift; that time passes on hardware.", min=0.001)
    ] = 1.0,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Measure what the device is like.")] = True,
    report: Annotated[
        Path | None,
        typer.Option(help="Write what was found as a page with pictures, such as check.html.", dir_okay=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print {checks, characterisation}.")] = False,
    debug: o.Debug = False,
) -> None:
    """Check a device against the contract and its own spec, and measure what it is like.

    First it is held to what it promises: ranges, levels, linearity, coupling and noise; shapes, types, errors,
    recovery, counters and threads. That takes some 80 programs, all over the range of the controls, and 1,000 vectors,
    or 50,000 where there is noise.

    Then it is measured, within a budget of its own: noise and its spectrum, effective bits, linearity error, crosstalk
    map, transfer curve, settling, repeatability, drift, dead and stuck elements, latency and throughput.

    The exit code is 1 when a check fails, or a promise is contradicted by a measurement.

    Example: astralora check bench.toml --budget-programs 100 --budget-vectors 10000 --report check.html
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
    for name in only or ():
        if name not in CHECKS and name not in MEASUREMENTS:
            raise ConfigurationError(f"there is no check {name!r}; known are {', '.join((*CHECKS, *MEASUREMENTS))}")
    checks = None if only is None else [name for name in only if name in CHECKS]
    measurements = None if only is None else [name for name in only if name in MEASUREMENTS]
    results = []
    if checks is None or checks:
        make = partial(offer_device, device, offered, **given)
        results = check_device(make, seed=seed, only=checks, listener=None if json else show)
    measured = None
    if measure and (measurements is None or measurements):
        budget = Budget(programs=budget_programs, vectors=budget_vectors)
        with Session(offer_device(device, offered, **given)) as session:
            measured = characterise(
                session,
                budget,
                only=measurements,
                drift_seconds=drift_seconds,
                seed=seed,
                listener=None if json else _show_finding,
            )
    failed = [result for result in results if not result.passed]
    broken = [] if measured is None else measured.broken_promises
    if report is not None:
        write_report(report, check_report(results, measured))
    if json:
        found = None if measured is None else measured.model_dump(mode="json")
        print_json({"checks": [asdict(result) for result in results], "characterisation": found})
    else:
        _print_verdict(results, measured)
    if failed or broken:
        raise typer.Exit(1)


def _show_finding(finding: Finding) -> None:
    mark = {True: Text("as promised", "green"), False: Text("not as promised", "bold red"), None: Text("")}
    line = Text.assemble(f"{finding.name:<18}", mark[finding.agrees], "  " if finding.agrees is not None else "")
    line.append(finding.sentence, "" if finding.agrees is False else "dim")
    out.print(line, soft_wrap=True)


def _print_verdict(results: list[CheckResult], measured: Characterisation | None) -> None:
    failed = [result for result in results if not result.passed]
    if failed:
        errors.print(f"{len(failed)} of {len(results)} checks failed.", style="bold red", highlight=False)
    elif results:
        out.print(
            f"{'the check' if len(results) == 1 else f'all {len(results)} checks'} passed.",
            style="green",
            highlight=False,
        )
    if measured is None:
        return
    spent = f"{measured.spent['programs']:,} programs and {measured.spent['vectors']:,} vectors"
    broken = ", ".join(finding.name for finding in measured.broken_promises)
    if broken:
        errors.print(f"measured with {spent}: not as promised are {broken}.", style="bold red", highlight=False)
    else:
        out.print(f"measured with {spent}; no promise was contradicted.", style="green", highlight=False)
    for name, reason in measured.skipped.items():
        out.print(f"{name} was not measured: {reason}.", style="dim", highlight=False)
