"""Make HTML tables for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

__all__ = ["html_table", "short"]

# No colour is set for text or background, so that the table is readable in light and dark themes.
_CELL = "padding:0.2em 0.8em 0.2em 0;text-align:left;vertical-align:top;border-bottom:1px solid rgba(128,128,128,0.35)"


def html_table(title: str, rows: Sequence[tuple[str, object]]) -> str:
    """Return a table of two columns, names and values, as HTML.

    All text is escaped. The table needs no scripts and no style sheets.

    Args:
        title: caption of the table.
        rows: pairs of name and value; `short` formats the values.
    """
    lines = [
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;opacity:0.75">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(short(value))}</td></tr>'
        for name, value in rows
    ]
    caption = f'<caption style="caption-side:top;text-align:left;font-weight:bold">{escape(title)}</caption>'
    return f'<table style="border-collapse:collapse;color:inherit">{caption}<tbody>{"".join(lines)}</tbody></table>'


def short(value: object) -> str:
    """Return a value as short text: four digits of a fraction, thousands separated, dates to the minute."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="minutes")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {short(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return ", ".join(map(short, value)) or "none"
    return str(value)
