"""Provide ``astralora calibrate``, which finds the constants of a chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from pydantic import Field
from rich.table import Table
from rich.text import Text

from ..calibration import calibrate as run_calibration
from ..common.errors import ConfigurationError
from ..devices import Calibration, Session
from ..reports import duration
from . import options as o
from .check_results import load_characterisation
from .chip import MeasuredChipConfig, MeasuredChipOptions, Section
from .command import command
from .console import errors, out, print_json, print_rows
from .output import check_file
from .progress import Bars
from .settings import validated

__all__ = ["calibrate"]


class LawSection(Section):
    """Describe the law to fit.

    Attributes:
        name: registered device whose law is fitted, or ``"none"``; the device's own name unless given.
        options: options of that law.
    """

    name: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class CalibrateConfig(MeasuredChipConfig):
    """Configure ``astralora calibrate``.

    Attributes:
        model: the law to fit.
        characterise: whether to measure noise, converters and channels first; None means only if the spec claims no
            noise.
    """

    model: LawSection = LawSection()
    characterise: bool | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(MeasuredChipOptions):
    """Hold the options that set keys of a `CalibrateConfig`."""

    keys: ClassVar[Mapping[str, str]] = {
        **MeasuredChipOptions.keys,
        "law": "model.name",
        "characterise": "characterise",
    }

    law: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Law to fit: the name of a simulated device, or none. (default: the device's name)",
            rich_help_panel=o.METHOD,
        ),
    ] = None
    characterise: Annotated[
        bool | None,
        typer.Option(
            "--characterise/--no-characterise",
            help="Measure noise, converters and channels first. (default: where the spec claims no noise)",
            rich_help_panel=o.METHOD,
        ),
    ] = None

    @classmethod
    def model(cls) -> type[CalibrateConfig]:
        """Return the class of the configuration."""
        return CalibrateConfig


@command
def calibrate(
    chip: CalibrateOptions,
    known: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Result of 'astralora check --out check.json' for this chip; its measurements are not repeated.",
        ),
    ] = None,
    output: o.OutFile[Path] = Path("chip.cal.json"),
    json: o.Json = False,
) -> None:
    """Find the constants of one chip: offsets, efficiencies, couplers, crosstalk, gains and losses.

    If the spec claims no noise, up to a quarter of the budget is spent first, to measure noise and converters. Then the
    chip answers at settings over its whole range. A differentiable model is fitted to most of the answers and must
    predict the others. If it does not, the record has no constants and the exit code is 1.

    By default, the budget is 64 programs, and as many vectors as determine a linear device.

    With --model none, properties are measured without a law, for chips whose law is unknown.

    The record is JSON, with its tensors in a second file. 'astralora report' makes a page of it. Measurements are saved
    at once: after an interruption, run the same command again to continue.

    Example: astralora calibrate --device mzi --out chip.cal.json
    """
    config = validated(CalibrateConfig, chip.overrides())
    if output.suffix.lower() in (".html", ".htm"):
        raise ConfigurationError(
            f"the record of a calibration is JSON: name it, for example, {output.with_suffix('.cal.json')}, and write "
            f"its page with 'astralora report'"
        )
    check_file(output, ".json")
    record = _calibrate(config, known, output, json)
    if json:
        print_json(record.model_dump(mode="json"))
    else:
        _print_record(record, output)
    if record.fit is not None and not record.fit.fits:
        errors.print(record.fit.verdict, style="bold red", highlight=False)
        raise typer.Exit(1)


def _calibrate(config: CalibrateConfig, known: Path | None, output: Path, json: bool) -> Calibration:
    """Measure the chip, fit its law and write the record."""
    device = config.make()
    own_law = config.device.name if config.device.name == device.spec.name else None
    with Session(device) as session, Bars(transient=False) as bars:

        def show(event: dict[str, Any]) -> None:
            _show_progress(bars, event)

        return run_calibration(
            session,
            config.budget,
            model=config.model.name or own_law,
            options=config.model.options,
            path=output,
            characterise=config.characterise,
            known=None if known is None else load_characterisation(known),
            seed=config.seed,
            listener=None if json else show,
        )


def _show_progress(bars: Bars, event: dict[str, Any]) -> None:
    """Show the progress of measuring, then of fitting."""
    done, total = event["done"], event["total"]
    if event["event"] == "measured":
        bars.update("measuring", done, total, f"{done} of {total} settings", bar="measured")
    else:
        bars.update("fitting  ", done, total, f"residual {event['left']:.3g} times the noise", bar="fitted")


def _print_record(record: Calibration, path: Path) -> None:
    fit = record.fit
    rows = {"chip": record.serial_number or f"{record.device}, which has no serial number"}
    if fit is not None and record.model is not None:
        rows["law"] = f"{record.model.name}: {fit.verdict}"
        rows["held out"] = (
            f"{fit.held_out_settings} of {fit.settings + fit.held_out_settings} settings; "
            f"residual {fit.held_out_rms:.3g}, noise {fit.noise_std:.3g}"
        )
    if record.fixed is not None:
        stuck = (~record.fixed.isnan()).nonzero()[:, 0].tolist()
        more = ", ..." if len(stuck) > 8 else ""
        rows["stuck"] = f"{len(stuck)} controls do not move: {', '.join(map(str, stuck[:8]))}{more}"
    rows["spent"] = (
        f"{record.spent['programs']:,} programs, {record.spent['vectors']:,} vectors, {duration(record.wall_seconds)}"
    )
    rows["record"] = str(path)
    print_rows(rows)
    for finding in record.findings:
        out.print(Text(f"{finding['name']:<18}  {finding['sentence']}", "dim"), soft_wrap=True)
    if record.constants:
        _print_constants(record)


def _print_constants(record: Calibration) -> None:
    table = Table("constant", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("mean", "spread", "error"):
        table.add_column(column, justify="right")
    for constant, values in record.constants.items():
        spread = f"{float(values.std()):.4f}" if values.numel() > 1 else "-"
        table.add_row(constant, f"{float(values.mean()):.4f}", spread, f"{float(record.errors[constant].mean()):.4f}")
    out.print(table)
