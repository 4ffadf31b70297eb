"""Provide ``astralora plan``, which predicts the cost of a run before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ..devices import Usage
from ..reports import duration
from ..training import Plan, RunConfig
from ..training import plan as make_plan
from . import options as o
from .command import command
from .console import out, print_json
from .output import check_file, write_json
from .runs import RunOptions

__all__ = ["plan"]

_TOTAL = "total"


@command
def plan(options: RunOptions, output: o.OutFile[Path | None] = None, json: o.Json = False) -> None:
    """Predict the programs, vectors and hours on hardware of a training run, without running it.

    The options are those of 'astralora train'. --out writes the result as JSON.

    Example: astralora plan --device mzi --in-features 64 --method paper
    """
    run = options.load()
    check_file(output, ".json")
    priced = make_plan(run)
    rows = [*sorted(priced.by_purpose.items()), (_TOTAL, priced.total)]
    result = _as_dict(priced, rows)
    if output is not None:
        write_json(output, result)
    if json:
        print_json(result)
    else:
        _print_plan(run, priced, rows)


def _seconds(priced: Plan, name: str) -> float:
    return priced.seconds(None if name == _TOTAL else name)


def _as_dict(priced: Plan, rows: list[tuple[str, Usage]]) -> dict[str, Any]:
    parts = {
        name: {
            "programs": usage.programs,
            "queries": usage.queries,
            "vectors": usage.vectors,
            "hardware_seconds": _seconds(priced, name),
        }
        for name, usage in rows
    }
    return {"steps": priced.steps, "expense": priced.expense, **parts.pop(_TOTAL), "by_purpose": parts}


def _print_plan(run: RunConfig, priced: Plan, rows: list[tuple[str, Usage]]) -> None:
    out.print(f"{run.task} through {run.device.name}, method {run.method.name}: {priced.steps:,} steps")
    table = Table("purpose", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("programs", "vectors", "on hardware"):
        table.add_column(column, justify="right")
    for name, usage in rows:
        if name == _TOTAL:
            table.add_section()
        seconds = duration(_seconds(priced, name))
        style = "bold" if name == _TOTAL else ""
        table.add_row(name, f"{usage.programs:,}", f"{usage.vectors:,}", seconds, style=style)
    out.print(table)
    if priced.expense is not None:
        out.print(f"[yellow]note:[/] {priced.expense}.", highlight=False)
