"""Provide ``astralora adapters train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import ConfigurationError
from ...devices.safety import stop_on_signals
from ...reports import duration
from .. import options as o
from ..command import command
from ..console import print_json, print_rows
from ..output import folder_or_new
from ..progress import Bars
from ..resuming import print_complete_run, refuse_other_options, reports_how_to_resume
from .notes import print_warnings
from .options import TrainOptions

if TYPE_CHECKING:
    from ...adapters.folder import AdapterFolder
    from ...adapters.run_config import AdapterRun

__all__ = ["train"]


@command
def train(
    options: TrainOptions,
    output: o.TrainingFolder = None,
    resume: o.Resume = None,
    json: o.Json = False,
) -> None:
    """Train adapters of a transformer, all of them or a changing share, and write a run folder.

    Example: astralora adapters train --data corpus.txt --dynamic --turn-on 0.25
    """
    from ...adapters.folder import AdapterFolder

    if resume is not None:
        refuse_other_options(options, output)
        folder = AdapterFolder(resume)
        run = folder.config()
        finished = folder.finished()
        if finished is not None:
            print_complete_run(resume, finished, json)
            return
        _run(run, folder, json, resume=True)
        return
    run = _load(options)
    with folder_or_new(output, _name(run)) as path:
        _run(run, AdapterFolder(path), json, resume=False)


def _run(run: AdapterRun, folder: AdapterFolder, json: bool, *, resume: bool) -> None:
    from ...adapters.run import train_run

    # SIGTERM then ends the run as Ctrl-C does.
    stop_on_signals()
    with reports_how_to_resume("astralora adapters train", folder.path), print_warnings(), Bars() as bars:

        def show(record: dict[str, Any]) -> None:
            _show_progress(bars, record)

        summary = train_run(run, folder, resume=resume, listener=show)
    if json:
        print_json(summary)
    else:
        _print_summary(summary, folder.path)


def _load(options: TrainOptions) -> AdapterRun:
    """Make the configuration of a new run.

    Raises:
        ConfigurationError: an option of dynamic runs without ``--dynamic``, or the configuration is not legal.
    """
    if not options.dynamic and any(key.startswith("dynamic.") for key in options.given()):
        raise ConfigurationError(
            "--turn-on, --realloc-n, --groups and --warmup-steps choose a share of the adapters; add --dynamic"
        )
    return options.load()


def _name(run: AdapterRun) -> str:
    kind = "uniform" if run.dynamic is None else "dynamic"
    return f"adapters-{Path(run.model.name).name}-{kind}-seed{run.seed}"


def _show_progress(bars: Bars, record: dict[str, Any]) -> None:
    """Show the step of a run, and print a line for every epoch."""
    match record["event"]:
        case "step":
            bars.update(f"step {record['step']}", note=f"loss {record['loss']:.3f}")
        case "epoch":
            scores = "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in record.items() if k.startswith("test_"))
            bars.print(f"epoch {record['epoch']:.2f}  {scores}")


def _print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    print_rows(
        {
            "run": f"{summary['model']}, {summary['objective']}, {summary['method']}, seed {summary['seed']}",
            **{name.replace("_", " "): f"{summary[name]:.4f}" for name in summary if name.startswith("test_")},
            "adapters on": f"{summary['adapters_on']} of {summary['adapters']}",
            "trained": f"{summary['trained_parameters']:,} of {summary['parameters']:,} numbers",
            "steps": f"{summary['steps']:,}",
            "damaged metrics": f"{summary['damaged_lines']:,} lines left out" if summary["damaged_lines"] else None,
            "time here": duration(summary["wall_seconds"]),
            "run folder": str(folder),
        }
    )
