"""``astralora adapters train``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ...common.errors import ConfigurationError
from ...reports import duration
from .. import options as o
from ..console import errors, one_sentence_errors, out, print_json
from . import options as a
from .notes import noted

if TYPE_CHECKING:
    from ...adapters.settings import AdapterRun

__all__ = ["train"]


@one_sentence_errors
def train(
    data: a.Data = None,
    test_data: a.TestData = None,
    text: a.TextKey = None,
    pair: a.PairKey = None,
    label: a.LabelKey = None,
    length: a.Length = None,
    model: a.Model = None,
    objective: a.Objective = None,
    adapter_file: a.AdapterFile = None,
    epochs: a.Epochs = None,
    steps: a.Steps = None,
    batch_size: a.BatchSize = None,
    lr: a.LearningRate = None,
    seed: a.Seed = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let adapters take turns, by their scores.", rich_help_panel=a.SCORES)
    ] = False,
    turn_on: a.TurnOn = None,
    realloc_n: Annotated[
        float | None,
        typer.Option(help="Share of an epoch from one choice to the next. (default: 0.1)", rich_help_panel=a.SCORES),
    ] = None,
    groups: a.Groups = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Steps with all on, before the first choice. (default: 0)", rich_help_panel=a.SCORES),
    ] = None,
    proxy: a.Proxy = None,
    batches: a.Batches = None,
    perturb: a.Perturb = None,
    config: a.Config = None,
    settings: a.Set = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder. (default: a new one in runs/)", file_okay=False)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Go on with the interrupted run in this folder.", file_okay=False),
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train adapters of a transformer, all of them or a share that takes turns, and leave a run folder.

    Example: astralora adapters train --data corpus.txt --dynamic --turn-on 0.25
    """
    from ...adapters.folder import AdapterFolder
    from ...adapters.run import train_run

    given = a.given_options(locals())
    if resume is not None:
        if config or settings or output or adapter_file or dynamic or given:
            raise ConfigurationError(
                "--resume goes on with the run exactly as it was begun: no other options than --json and --debug"
            )
        folder = AdapterFolder(resume)
        run = folder.config()
        finished = folder.summary()
        if finished is not None:
            errors.print(f"The run in {resume} is complete; there is nothing to go on with.")
            if json:
                print_json(finished)
            return
    elif not dynamic and any(key.startswith("dynamic.") for key in given):
        raise ConfigurationError(
            "--turn-on, --realloc-n, --groups and --warmup are about adapters that take turns; add --dynamic"
        )
    else:
        run = a.adapter_run(config, settings, given, adapter_file, dynamic=dynamic)
        folder = AdapterFolder(output or _new_folder(run))
    with noted(), _Steps() as view:
        summary = train_run(run, folder, resume=resume is not None, listener=view.show)
    if json:
        print_json(summary)
        return
    _print_summary(summary, folder.path)


def _new_folder(run: AdapterRun) -> Path:
    model = Path(run.model.name).name
    kind = "uniform" if run.dynamic is None else "dynamic"
    name = f"adapters-{model}-{kind}-seed{run.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, again = Path("runs") / name, 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}-{again}"
    return folder


class _Steps:
    """Live progress on standard error, and a line for every epoch."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=True,
        )
        self._started = False

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Show one record."""
        if not self._started:
            # Only now: a run that is refused before its start shows its one sentence and nothing else.
            self._started = True
            self._progress.start()
            self._bar = self._progress.add_task("", total=None, note="")
        match record["event"]:
            case "step":
                self._progress.update(
                    self._bar, description=f"step {record['step']}", note=f"loss {record['loss']:.3f}"
                )
            case "epoch":
                scores = "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in record.items() if k.startswith("test_"))
                line = f"epoch {record['epoch']:.2f}  {scores}"
                self._progress.console.print(line, highlight=False, soft_wrap=True)


def _print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "run": f"{summary['model']}, {summary['objective']}, {summary['method']}, seed {summary['seed']}",
        **{name.replace("_", " "): f"{summary[name]:.4f}" for name in summary if name.startswith("test_")},
        "adapters on": f"{summary['adapters_on']} of {summary['adapters']}",
        "trained": f"{summary['trained_parameters']:,} of {summary['parameters']:,} numbers",
        "steps": f"{summary['steps']:,}",
        "time here": duration(summary["wall_seconds"]),
        "run folder": str(folder),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
