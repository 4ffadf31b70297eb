"""``astralora devices``: what there is to train through."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..devices import list_devices
from .console import one_sentence_errors, out, print_json
from .options import Debug, Json

__all__ = ["devices"]


@one_sentence_errors
def devices(json: Json = False, debug: Debug = False) -> None:
    """List the registered devices, and those that cannot be loaded, with the reason.

    Example: astralora devices
    """
    entries = list_devices()
    if json:
        fields = ("name", "source", "summary", "problem")
        print_json([{field: getattr(entry, field) for field in fields} for entry in entries])
        return
    table = Table("device", "from", "what it is", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for entry in entries:
        what = Text(f"cannot be loaded: {entry.problem}", "red") if entry.problem else Text(entry.summary)
        table.add_row(entry.name, entry.source, what)
    out.print(table)
