"""Provide ``astralora devices``, which lists the registered devices."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..devices import list_devices
from . import options as o
from .command import command
from .console import out, print_json

__all__ = ["devices"]


@command
def devices(json: o.Json = False) -> None:
    """List the registered devices, and those that cannot be loaded, with the reason.

    Example: astralora devices
    """
    entries = list_devices()
    if json:
        fields = ("name", "source", "summary", "problem")
        print_json([{field: getattr(entry, field) for field in fields} for entry in entries])
        return
    table = Table("device", "from", "description", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for entry in entries:
        text = Text(f"cannot be loaded: {entry.problem}", "red") if entry.problem else Text(entry.summary)
        table.add_row(entry.name, entry.source, text)
    out.print(table)
