"""What the benchmarks' commands have in common: options, progress, tables, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ...common.errors import ConfigurationError
from ...devices.files import write_atomically
from ..console import errors, out

Devices = Annotated[str, typer.Option("--devices", help="Registered devices, with commas between them.")]
Methods = Annotated[
    str,
    typer.Option("--methods", help="Methods, estimators, surrogates, or pairs such as 'orthogonal+online'."),
]
Seeds = Annotated[str, typer.Option("--seeds", help="Of chip, data and estimator, with commas between them.")]
Impairments = Annotated[str, typer.Option("--impairments", help="Of the simulated devices: ideal, lab or harsh.")]
Samples = Annotated[str, typer.Option("--samples", help="Perturbations a step, for methods that perturb.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for records and picture. (default: a new one in runs/)", file_okay=False),
]
Record = dict[str, Any]


class Steps:
    """A progress bar on standard error, for work of a length that may show only on the way."""

    def __init__(self, what: str) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
        )
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, total: int | None) -> None:
        """One more is done, of so many."""
        self._progress.update(self._bar, advance=1, total=total)


def save(name: str, folder: Path | None, records: list[dict[str, Any]], picture: bytes, **more: Any) -> Path:
    """Write records and picture into a folder, a new one where None is given; returns it."""
    if folder is None:
        folder = Path("runs") / f"bench-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in {name: records, **more}.items():
        write_atomically(folder / f"{kind}.json", json.dumps(content, indent=1))
    write_atomically(folder / f"{name}.png", picture)
    return folder


def say_where(folder: Path) -> None:
    """Tell where they are."""
    out.print(f"records and picture: {folder}", soft_wrap=True)


def make_table(*columns: str) -> Table:
    """An empty table; words to the left, numbers to the right."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("device", "impairments", "method", "data") else "right")
    return table


def grouped(
    records: Sequence[dict[str, Any]], keys: Sequence[str]
) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Records by the values of some keys, in the order of their first ones."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(groups.items())


def span(values: Sequence[int]) -> str:
    """Least to most."""
    if not values:
        return "never"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def spread(values: Sequence[float]) -> str:
    """Mean, and least to most where that is more."""
    low, high = min(values), max(values)
    around = "" if f"{low:.3f}" == f"{high:.3f}" else f" ({low:.3f} to {high:.3f})"
    return f"{fmean(values):.3f}{around}"


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation, in percent."""
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{around}"


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str, least: int = 0) -> list[int]:
    """Whole numbers with commas between them.

    Raises:
        ConfigurationError: they are none, or too small.
    """
    return _parsed(text, lambda number: number >= least, f"{option} takes whole numbers of at least {least}")


def parse_size(text: str) -> tuple[int, int]:
    """Inputs and outputs; one number is both.

    Raises:
        ConfigurationError: it is neither.
    """
    parts = _parsed(text.replace("x", ","), lambda number: number >= 1, "--sizes takes INPUTSxOUTPUTS")
    if len(parts) == 1:
        return parts[0], parts[0]
    if len(parts) != 2:
        raise ConfigurationError(f"--sizes takes INPUTSxOUTPUTS, such as 256x128, not {text!r}")
    return parts[0], parts[1]


def _parsed(text: str, legal: Callable[[int], bool], expected: str) -> list[int]:
    try:
        values = [int(word) for word in words(text)]
    except ValueError:
        values = []
    if not values or not all(map(legal, values)):
        raise ConfigurationError(f"{expected}, not {text!r}")
    return values
