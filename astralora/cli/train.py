"""``astralora train``: the main job."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ..common.errors import ConfigurationError
from ..reports import RunData, duration, percent, verdicts
from ..training import Interrupted, RunConfig, RunFolder
from ..training import train as run_training
from . import options as o
from .console import errors, one_sentence_errors, out, print_json

__all__ = ["train"]

_SIGINT_EXIT = 130


@one_sentence_errors
def train(
    task: o.TaskName = None,
    device: o.DeviceName = None,
    impairments: o.Impairments = None,
    calibration: o.Calibration = None,
    in_features: o.InFeatures = None,
    out_features: o.OutFeatures = None,
    budget_programs: o.BudgetPrograms = None,
    budget_vectors: o.BudgetVectors = None,
    method: o.Method = None,
    samples: o.Samples = None,
    rank: o.Rank = None,
    step: o.Step = None,
    allocate: o.Allocate = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    seed: o.Seed = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            "--baseline/--no-baseline",
            help="Train the digital model beside it, or not. (default: beside it)",
            rich_help_panel="Training",
        ),
    ] = None,
    config: o.Config = None,
    settings: o.Set = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder. (default: a new one in runs/)", file_okay=False),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Go on with the interrupted run in this folder.", file_okay=False),
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train a model through a device, beside its digital baseline, and leave a run folder with a report.

    Example: astralora train --device slm --impairments lab --epochs 10 --seed 1
    """
    given = o.given_options(locals())
    if resume is not None:
        if config or settings or output or given:
            raise ConfigurationError(
                "--resume goes on with the run exactly as it was begun: no other options than --json and --debug"
            )
        folder = RunFolder.reopen(resume)
        finished = folder.summary()
        if finished is not None:
            errors.print(f"The run in {resume} is complete; there is nothing to go on with.")
            if json:
                print_json(finished)
            return
    else:
        run = o.run_config(config, settings, given)
        folder = RunFolder(output or _new_folder(run), run)
    try:
        with _View(folder.config) as view:
            result = run_training(folder, resume=resume is not None, listener=view.show)
    except Interrupted as stop:
        errors.print(
            f"Interrupted after step {stop.step}. Go on with: astralora train --resume '{folder.path}'",
            soft_wrap=True,
        )
        raise typer.Exit(_SIGINT_EXIT) from None
    if json:
        print_json(result.summary)
    else:
        _print_result(result, folder.path)


def _new_folder(run: RunConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{run.task}-{run.device.name}-{run.method.name}-seed{run.seed}-{stamp}"
    folder, again = Path("runs") / name, 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}-{again}"
    return folder


class _View:
    """Live progress on standard error, and a line for every epoch."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._steps = 0
        self._accuracy: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Show one record."""
        match record["event"]:
            case "start":
                self._steps = record["steps"]
                # Only now: a run that is refused before its start shows its one sentence and nothing else.
                self._progress.start()
                self._bar = self._progress.add_task("", total=None, note="")
            case "baseline":
                self._update("digital baseline", record["epoch"], self._config.epochs, _accuracy(record))
                if record["epoch"] == self._config.epochs:
                    self._line("baseline", record)
            case "step":
                note = f"test {percent(self._accuracy)}  {_spent(record)}"
                self._update(f"epoch {record['epoch']}/{self._config.epochs}", record["step"], self._steps, note)
            case "epoch":
                self._accuracy = record["test_accuracy"]
                self._line(f"epoch {record['epoch']:>3}", record)

    def _update(self, what: str, done: int, total: int, note: str) -> None:
        if self._bar is not None:
            self._progress.update(self._bar, description=what, completed=done, total=total, note=note)

    def _line(self, what: str, record: dict[str, Any]) -> None:
        line = f"{what:<9} {_accuracy(record):>13}  {_spent(record) if 'programs' in record else ''}"
        self._progress.console.print(line.rstrip(), highlight=False, soft_wrap=True)


def _accuracy(record: dict[str, Any]) -> str:
    return f"test {percent(record['test_accuracy'])}"


def _spent(record: dict[str, Any]) -> str:
    seconds = duration(record["hardware_seconds"])
    return f"{record['programs']:,} programs  {record['vectors']:,} vectors  {seconds} hardware"


def _perturbations(data: RunData) -> str | None:
    size, bound = data.summary["step_size"], data.summary["step_bound"]
    if size is None:
        return None
    why = "as given" if bound == "given" else f"decided by the {bound}" if bound != "levels" else "two control levels"
    return f"of {size:.3g} {data.control_unit}".rstrip() + f" ({why})"


def _print_result(data: RunData, folder: Path) -> None:
    summary = data.summary
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "run": data.title,
        "test accuracy": f"{percent(summary['test_accuracy'])} (best {percent(summary['best_test_accuracy'])})",
        "digital baseline": percent(summary["baseline_test_accuracy"]),
        "gradients by": f"{summary['estimator']} for controls, {summary['surrogate']} for inputs",
        "perturbations": _perturbations(data),
        "programs": f"{summary['programs']:,} ({summary['programs_per_step'] or 0:.2f} per step)",
        "vectors": f"{summary['vectors']:,}",
        "time on hardware": f"{duration(summary['hardware_seconds'])} (predicted)",
        "time here": duration(summary["wall_seconds"]),
        "run folder": str(folder),
        "report": str(folder / "report.html"),
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value, style="bold" if name == "test accuracy" else "")
    out.print(table)
    for warning in verdicts(data)[1:]:
        out.print(f"[yellow]note:[/] {warning}")
