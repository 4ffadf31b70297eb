"""Provide ``astralora check``, which compares a device with its spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from ..characterisation import MEASUREMENTS, Characterisation, Finding, characterise
from ..common.errors import ConfigurationError
from ..devices import Session
from ..devices.testing import CHECKS, CheckResult, check_device
from ..reports import check_report
from . import options as o
from .chip import MeasuredChipConfig, MeasuredChipOptions
from .command import command
from .console import errors, out, print_json
from .output import check_file, write_file, write_json

__all__ = ["check"]


@command
def check(
    chip: MeasuredChipOptions,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Check or measurement to make; may be repeated. Checks: {checks}. Measurements: {measurements}. "
            "(default: all)",
            rich_help_panel="Checks",
        ),
    ] = None,
    drift_seconds: Annotated[
        float,
        typer.Option(
            metavar="X", help="Seconds to observe one setting for drift; on hardware this time passes.", min=0.001
        ),
    ] = 1.0,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Also measure noise, converters, channels and speed.")
    ] = True,
    output: o.OutFile[Path | None] = None,
    json: o.Json = False,
) -> None:
    """Check a device against the contract and its own spec, and measure its properties.

    The checks verify the claims of the spec (ranges, levels, linearity, coupling and noise), and shapes, types, errors,
    recovery, counters and threads. They take about 80 programs and 1,000 vectors, or 50,000 vectors if there is noise.

    The measurements have a separate budget, about 70 programs unless --budget-programs is given: noise and its
    spectrum, effective bits, linearity error, crosstalk map, transfer curve, settling, repeatability, drift, dead
    outputs and stuck controls, latency and throughput.

    --out check.json writes the result for 'astralora calibrate --known' and 'astralora report'; --out check.html writes
    a page with pictures. The exit code is 1 when a check fails or a measurement contradicts the spec.

    Example: astralora check --device bench.toml --out check.html
    """
    config = chip.load()
    check_file(output, ".json", ".html", ".htm")
    # Make the device once before the checks, because a wrong name or option is not a failed check.
    config.make()
    checks, measurements = _chosen(only)
    results: list[CheckResult] = []
    if checks is None or checks:
        results = check_device(config.make, seed=config.seed, only=checks, listener=None if json else _show_result)
    measured = None
    if measure and (measurements is None or measurements):
        measured = _measure(config, measurements, drift_seconds, json)
    found = _as_dict(results, measured)
    if output is not None:
        _write(output, found, results, measured)
    if json:
        print_json(found)
    else:
        _show_verdict(results, measured)
    if not all(result.passed for result in results) or (measured is not None and measured.unmet_claims):
        raise typer.Exit(1)


def _chosen(only: Sequence[str] | None) -> tuple[list[str] | None, list[str] | None]:
    """Split the names of ``--only`` into checks and measurements; None means all."""
    if only is None:
        return None, None
    for name in only:
        if name not in CHECKS and name not in MEASUREMENTS:
            raise ConfigurationError(f"there is no check {name!r}; known are {', '.join((*CHECKS, *MEASUREMENTS))}")
    return [name for name in only if name in CHECKS], [name for name in only if name in MEASUREMENTS]


def _measure(config: MeasuredChipConfig, only: list[str] | None, drift_seconds: float, json: bool) -> Characterisation:
    """Measure the device within the budget."""
    with Session(config.make()) as session:
        return characterise(
            session,
            config.budget,
            only=only,
            drift_seconds=drift_seconds,
            seed=config.seed,
            listener=None if json else _show_finding,
        )


def _as_dict(results: list[CheckResult], measured: Characterisation | None) -> dict[str, Any]:
    return {
        "checks": [asdict(result) for result in results],
        "characterisation": None if measured is None else measured.model_dump(mode="json"),
    }


def _write(path: Path, found: dict[str, Any], results: list[CheckResult], measured: Characterisation | None) -> None:
    """Write the result as a page or as JSON, by the ending of the file's name."""
    if path.suffix.lower() in (".html", ".htm"):
        write_file(path, check_report(results, measured))
    else:
        write_json(path, found)


def _show_result(result: CheckResult) -> None:
    skipped = result.passed and result.detail
    mark = Text("failed", "bold red") if not result.passed else Text("-" if skipped else "ok", "green")
    line = Text.assemble(f"{result.check:<26}", mark)
    if result.detail:
        line.append(f"  {result.detail}", "" if not result.passed else "dim")
    out.print(line, soft_wrap=True)


def _show_finding(finding: Finding) -> None:
    mark = {True: Text("as claimed", "green"), False: Text("not as claimed", "bold red"), None: Text("")}
    line = Text.assemble(f"{finding.name:<18}", mark[finding.agrees], "  " if finding.agrees is not None else "")
    line.append(finding.sentence, "" if finding.agrees is False else "dim")
    out.print(line, soft_wrap=True)


def _show_verdict(results: list[CheckResult], measured: Characterisation | None) -> None:
    failed = [result for result in results if not result.passed]
    if failed:
        errors.print(f"{len(failed)} of {len(results)} checks failed.", style="bold red", highlight=False)
    elif results:
        subject = "the check" if len(results) == 1 else f"all {len(results)} checks"
        out.print(f"{subject} passed.", style="green", highlight=False)
    if measured is None:
        return
    spent = f"{measured.spent['programs']:,} programs and {measured.spent['vectors']:,} vectors"
    contradicted = ", ".join(finding.name for finding in measured.unmet_claims)
    if contradicted:
        errors.print(
            f"measured with {spent}: the spec is wrong about {contradicted}.", style="bold red", highlight=False
        )
    else:
        out.print(f"measured with {spent}; no claim was contradicted.", style="green", highlight=False)
    for name, reason in measured.skipped.items():
        out.print(f"{name} was not measured: {reason}.", style="dim", highlight=False)
