"""Provide ``astralora train``, which trains a model through a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..reports import RunData, duration, percent, verdicts
from ..training import RunConfig, RunFolder
from ..training import train as run_training
from . import options as o
from .command import command
from .console import out, print_json, print_rows
from .output import folder_or_new
from .progress import Bars
from .resuming import print_complete_run, refuse_other_options, reports_how_to_resume
from .runs import RunOptions

__all__ = ["train"]


@command
def train(
    options: RunOptions,
    output: o.TrainingFolder = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Train a model through a device, train a digital baseline, and write a run folder with a report.

    Example: astralora train --device slm --impairments lab --epochs 10 --seed 1
    """
    if resume is not None:
        refuse_other_options(options, output)
        folder = RunFolder.reopen(resume)
        finished = folder.finished()
        if finished is not None:
            print_complete_run(resume, finished, json)
            return
        _run(folder, json, resume=True)
        return
    run = options.load()
    with folder_or_new(output, _name(run)) as path:
        _run(RunFolder(path, run), json, resume=False)


def _run(folder: RunFolder, json: bool, *, resume: bool) -> None:
    with reports_how_to_resume("astralora train", folder.path), _Progress(folder.config) as progress:
        result = run_training(folder, resume=resume, listener=progress.show)
    if json:
        print_json(result.summary)
    else:
        _print_result(result, folder.path)


def _name(run: RunConfig) -> str:
    device = Path(run.device.name.rpartition(":")[0]).stem or run.device.name
    return f"{run.task}-{device}-{run.method.name}-seed{run.seed}"


class _Progress(Bars):
    """Show the progress of a run, and print a line for every epoch.

    Args:
        config: configuration of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._epochs = config.epochs
        self._steps = 0
        self._accuracy: float | None = None

    def show(self, record: dict[str, Any]) -> None:
        """Show one record of the run."""
        match record["event"]:
            case "start":
                self._steps = record["steps"]
                self.update("")
            case "baseline":
                self.update("digital baseline", record["epoch"], self._epochs, _accuracy(record))
                if record["epoch"] == self._epochs:
                    self._print_line("baseline", record)
            case "step":
                note = f"test {percent(self._accuracy)}  {_spent(record)}"
                self.update(f"epoch {record['epoch']}/{self._epochs}", record["step"], self._steps, note)
            case "epoch":
                self._accuracy = record["test_accuracy"]
                self._print_line(f"epoch {record['epoch']:>3}", record)

    def _print_line(self, what: str, record: dict[str, Any]) -> None:
        self.print(f"{what:<9} {_accuracy(record):>13}  {_spent(record) if 'programs' in record else ''}")


def _accuracy(record: dict[str, Any]) -> str:
    return f"test {percent(record['test_accuracy'])}"


def _spent(record: dict[str, Any]) -> str:
    seconds = duration(record["hardware_seconds"])
    return f"{record['programs']:,} programs  {record['vectors']:,} vectors  {seconds} hardware"


def _perturbations(data: RunData) -> str | None:
    """Describe the size of perturbations and its reason; None for methods without perturbations."""
    size, bound = data.summary["step_size"], data.summary["step_bound"]
    if size is None:
        return None
    why = "as given" if bound == "given" else f"decided by the {bound}" if bound != "levels" else "two control levels"
    return f"of {size:.3g} {data.control_unit}".rstrip() + f" ({why})"


def _print_result(data: RunData, folder: Path) -> None:
    summary = data.summary
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
    print_rows(rows, bold="test accuracy")
    for warning in verdicts(data)[1:]:
        out.print(f"[yellow]note:[/] {warning}")
