"""Print results for people and for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["errors", "out", "print_json", "print_rows"]

out = Console()
"""Console for results."""

errors = Console(stderr=True)
"""Console for progress and errors on standard error, so that standard output has results only."""


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


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
