"""``astralora plan``: the price of a run, before it is paid."""

from __future__ import annotations

from rich.table import Table

from ..reports.text import duration
from ..training import plan as make_plan
from . import options as o
from .console import one_sentence_errors, out, print_json

__all__ = ["plan"]


@one_sentence_errors
def plan(
    task: o.TaskName = None,
    device: o.DeviceName = None,
    impairments: o.Impairments = None,
    calibration: o.Calibration = None,
    in_features: o.InFeatures = None,
    out_features: o.OutFeatures = None,
    method: o.Method = None,
    samples: o.Samples = None,
    rank: o.Rank = None,
    step: o.Step = None,
    allocate: o.Allocate = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    config: o.Config = None,
    settings: o.Set = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Price a training run in programs, vectors and hours on hardware, without running it.

    Example: astralora plan --device mzi --in-features 64 --out-features 64 --method paper
    """
    given = o.given_options(locals())
    run = o.run_config(config, settings, given)
    priced = make_plan(run)
    rows = [*sorted(priced.by_purpose.items()), ("total", priced.total)]
    if json:
        parts = {
            name: {
                "programs": usage.programs,
                "queries": usage.queries,
                "vectors": usage.vectors,
                "hardware_seconds": priced.seconds(None if name == "total" else name),
            }
            for name, usage in rows
        }
        print_json({"steps": priced.steps, "expense": priced.expense, **parts.pop("total"), "by_purpose": parts})
        return
    out.print(f"{run.task} through {run.device.name}, method {run.method.name}: {priced.steps:,} steps")
    table = Table("purpose", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("programs", "vectors", "on hardware"):
        table.add_column(column, justify="right")
    for name, usage in rows:
        if name == "total":
            table.add_section()
        seconds = priced.seconds(None if name == "total" else name)
        table.add_row(
            name,
            f"{usage.programs:,}",
            f"{usage.vectors:,}",
            duration(seconds),
            style="bold" if name == "total" else "",
        )
    out.print(table)
    if priced.expense is not None:
        out.print(f"[yellow]note:[/] {priced.expense}.", highlight=False)
