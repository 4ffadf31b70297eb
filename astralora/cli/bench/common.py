"""Parse lists, write records and make tables for the benchmarks' commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from ...common.errors import ConfigurationError
from ..console import out
from ..output import new_folder, write_file, write_json

__all__ = [
    "Record",
    "format_range",
    "group_records",
    "make_table",
    "mean_and_deviation",
    "mean_and_range",
    "parse_numbers",
    "parse_size",
    "parse_sizes",
    "parse_square",
    "print_folder",
    "save",
    "split_words",
]

Record = dict[str, Any]

_WORDS = ("device", "impairments", "method", "data")  # columns of words, which are aligned at the left


def save(name: str, folder: Path | None, records: list[Record], picture: bytes | None = None, **more: Any) -> Path:
    """Write records and picture into a folder.

    Args:
        name: name of the benchmark and of its files.
        folder: folder to write into, which is made if there is none; None for a new one in ``runs/``.
        records: content of NAME.json.
        picture: content of NAME.png.
        **more: content of further JSON files by name.

    Returns:
        The folder.

    Raises:
        ConfigurationError: a file cannot be written.
    """
    folder = folder or new_folder(f"bench-{name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror or error}") from None
    for kind, content in {name: records, **more}.items():
        write_json(folder / f"{kind}.json", content)
    if picture is not None:
        write_file(folder / f"{name}.png", picture)
    return folder


def print_folder(folder: Path) -> None:
    """Print the path of the result."""
    out.print(f"result: {folder}", soft_wrap=True)


def make_table(*columns: str) -> Table:
    """Return an empty table with words at the left and numbers at the right."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right")
    return table


def group_records(records: Sequence[Record], keys: Sequence[str]) -> list[tuple[tuple[Any, ...], list[Record]]]:
    """Group records by the values of some keys, in the order of the first records."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(groups.items())


def format_range(values: Sequence[int]) -> str:
    """Format the least and the greatest value, or "never" where there is none."""
    if not values:
        return "never"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def mean_and_range(values: Sequence[float]) -> str:
    """Format the mean, and the least and the greatest value where they differ."""
    low, high = min(values), max(values)
    around = "" if f"{low:.3f}" == f"{high:.3f}" else f" ({low:.3f} to {high:.3f})"
    return f"{fmean(values):.3f}{around}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Format the mean and the standard deviation, in percent."""
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{around}"


def split_words(text: str) -> list[str]:
    """Split a list with commas between its words."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parse_numbers(option: str, text: str, least: int = 0) -> list[int]:
    """Parse whole numbers with commas between them.

    Raises:
        ConfigurationError: the text is not a list of whole numbers, or one is too small.
    """
    return _parse(text, least, f"{option} takes whole numbers of at least {least}")


def parse_sizes(text: str, least: int = 1) -> list[int]:
    """Parse the sizes of square devices, with commas between them.

    Raises:
        ConfigurationError: the text is not a list of whole numbers, or one is too small.
    """
    return parse_numbers("--size", text, least)


def parse_square(text: str, least: int = 1) -> int:
    """Parse the size of one square device.

    Raises:
        ConfigurationError: the text is not one number, or the number is too small.
    """
    sizes = parse_sizes(text, least)
    if len(sizes) > 1:
        raise ConfigurationError(f"--size takes one number here, such as 64, not {text!r}")
    return sizes[0]


def parse_size(text: str) -> tuple[int, int]:
    """Parse the inputs and outputs of one device; a single number sets both.

    Raises:
        ConfigurationError: the text is not a size.
    """
    parts = _parse(text.replace("x", ","), 1, "--size takes INPUTSxOUTPUTS")
    if len(parts) > 2:
        raise ConfigurationError(f"--size takes INPUTSxOUTPUTS, such as 256x128, not {text!r}")
    return parts[0], parts[-1]


def _parse(text: str, least: int, expected: str) -> list[int]:
    try:
        values = [int(word) for word in split_words(text)]
    except ValueError:
        values = []
    if not values or min(values) < least:
        raise ConfigurationError(f"{expected}, not {text!r}")
    return values
