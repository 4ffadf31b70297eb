"""Print results for people and for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["errors", "out", "print_json", "print_rows", "to_json"]

out = Console()
"""Console for results."""

errors = Console(stderr=True)
"""Console for progress and errors on standard error, so that standard output has results only."""


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(to_json(value))


def to_json(value: Any) -> str:
    """Return a value as a JSON document that ends with a line break; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a value with None in place of nan and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def print_rows(rows: Mapping[str, str | None], bold: str | None = None) -> None:
    """Print names and values in two columns.

    Args:
        rows: values by name; those that are None are left out.
        bold: name of a row to emphasize.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value, style="bold" if name == bold else "")
    out.print(table)
