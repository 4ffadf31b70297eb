"""``astralora calibrate``: what is this chip really like?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from ..calibration import calibrate as run_calibration
from ..devices import Budget, Calibration, Session, offer_device
from ..reports import calibration_report, duration, write_report
from . import options as o
from .characterised import load_characterisation
from .console import errors, one_sentence_errors, out, print_json

__all__ = ["calibrate"]


@one_sentence_errors
def calibrate(
    device: Annotated[str, typer.Argument(help="Registered device, or a bench file; see 'astralora devices'.")],
    output: Annotated[
        Path,
        typer.Option("--out", "-o", help="The record; its tensors are written beside it.", dir_okay=False),
    ] = Path("chip.cal.json"),
    budget_programs: Annotated[
        int | None, typer.Option(help="The most programs to spend. (default: 64)", min=3)
    ] = None,
    budget_vectors: Annotated[
        int | None, typer.Option(help="The most vectors to spend. (default: as many as tell all)", min=3)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The law to fit: a simulated kind, one of your own, or none. (default: the device's name)"),
    ] = None,
    model_settings: Annotated[
        list[str] | None, typer.Option("--model-set", help="Any option of that law, such as response=power.")
    ] = None,
    in_features: Annotated[int, typer.Option(help="Inputs, of a device that can be had in any size.", min=1)] = 16,
    out_features: Annotated[int, typer.Option(help="Outputs, of a device that can be had in any size.", min=1)] = 16,
    impairments: Annotated[str, typer.Option(help="Of a simulated device: ideal, lab or harsh.")] = "lab",
    seed: Annotated[int, typer.Option(help="Of settings and fit, and of a simulated chip.", min=0)] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of the device, such as port=tcp://127.0.0.1:5000.")
    ] = None,
    characterise: Annotated[
        bool | None,
        typer.Option(
            "--characterise/--no-characterise",
            help="Measure noise, converters and channels first. (default: where the spec tells no noise)",
        ),
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option(help="What 'astralora check --json' printed of this chip: it is not measured again."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with pictures, such as chip.cal.html.", dir_okay=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record, without its tensors.")] = False,
    debug: o.Debug = False,
) -> None:
    """Find the constants of a chip's own law: offsets, efficiencies, couplers, crosstalk, gains and losses.

    Where its spec tells no noise, a quarter of the budget goes into noise, converters and channels first. Then the chip
    is asked for settings all over its range, once. A differentiable model is fitted to the answers and has to foresee
    others that were held out. The exit code is 1 when it does not: the record then says so, and has no constants.

    With --model none, a chip of unknown law is measured as far as that goes without one.

    What was measured is kept in a file beside the record until that is written. After an interruption, the same command
    goes on from there.

    Example: astralora calibrate mzi --in-features 64 --out-features 64 --budget-programs 64 -o chip.cal.json
    """
    offered = {"in_features": in_features, "out_features": out_features, "impairments": impairments, "seed": seed}
    given = o.parse_settings(settings)
    offered = {key: value for key, value in offered.items() if key not in given}
    chip = offer_device(device, offered, **given)
    budget = Budget(programs=budget_programs, vectors=budget_vectors)
    with Session(chip) as session, _Bars() as bars:
        record = run_calibration(
            session,
            budget,
            model=model or (device if not device.endswith(".toml") and device == chip.spec.name else None),
            options=o.parse_settings(model_settings),
            path=output,
            characterise=characterise,
            known=None if known is None else load_characterisation(known),
            seed=seed,
            listener=None if json else bars.show,
        )
    if report is not None:
        write_report(report, calibration_report(record))
    if json:
        print_json(record.model_dump(mode="json"))
    else:
        _print_record(record, output)
    if record.fit is not None and not record.fit.fits:
        errors.print(record.fit.verdict, style="bold red", highlight=False)
        raise typer.Exit(1)


class _Bars:
    """Progress of measuring, then of fitting."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), console=errors
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Show one event."""
        what = event["event"]
        if not self._bars:
            self._progress.start()
        if what not in self._bars:
            self._bars[what] = self._progress.add_task("measuring" if what == "measured" else "fitting  ", note="")
        note = f"{event['done']} of {event['total']} settings" if what == "measured" else ""
        if what == "fitted":
            note = f"{event['left']:.3g} times the noise is left"
        self._progress.update(self._bars[what], completed=event["done"], total=event["total"], note=note)


def _print_record(record: Calibration, path: Path) -> None:
    fit = record.fit
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {"chip": record.serial_number or f"{record.device}, which has no serial number"}
    if fit is not None and record.model is not None:
        rows["law"] = f"{record.model.name}: {fit.verdict}"
        rows["held out"] = (
            f"{fit.held_out_settings} of {fit.settings + fit.held_out_settings} settings; "
            f"{fit.held_out_rms:.3g} is left of their answers, where noise is {fit.noise_std:.3g}"
        )
    if record.fixed is not None:
        which = (~record.fixed.isnan()).nonzero()[:, 0].tolist()
        rows["stuck"] = f"{len(which)} controls do not move: {', '.join(map(str, which[:8]))}" + (
            ", ..." if len(which) > 8 else ""
        )
    rows["spent"] = (
        f"{record.spent['programs']:,} programs, {record.spent['vectors']:,} vectors, "
        f"{duration(record.wall_seconds)} here"
    )
    rows["record"] = str(path)
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
    for finding in record.findings:
        out.print(Text(f"{finding['name']:<18}  {finding['sentence']}", "dim"), soft_wrap=True)
    if not record.constants:
        return
    found = Table("constant", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("mean", "spread", "error"):
        found.add_column(column, justify="right")
    for constant, values in record.constants.items():
        spread = f"{float(values.std()):.4f}" if values.numel() > 1 else "-"
        found.add_row(constant, f"{float(values.mean()):.4f}", spread, f"{float(record.errors[constant].mean()):.4f}")
    out.print(found)
