"""Show results as small HTML tables in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["html_table"]

# Neither text nor background has a colour of its own, so the table is readable in light and dark themes.
_CELL = "text-align: left; vertical-align: top; padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid #8884"


def html_table(title: str, rows: Sequence[tuple[str, object]]) -> str:
    """Return a table of names and values as HTML, with all texts escaped and no scripts.

    Args:
        title: heading of the table.
        rows: names and values.
    """
    body = "".join(
        f'<tr><th scope="row" style="{_CELL}; font-weight: normal">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    caption = f'<caption style="text-align: left; font-weight: bold">{escape(title)}</caption>'
    return f'<table style="border-collapse: collapse">{caption}<tbody>{body}</tbody></table>'
