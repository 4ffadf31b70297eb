"""Make Markdown of the reStructuredText that docstrings contain: tables and double colons."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TABLE = re.compile(r"^=+(?:  +=+)+$")


class PlainDocstrings(griffe.Extension):
    """Show tables of docstrings as they are typed, and end introductions of code with one colon."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Return a docstring with its tables indented as code, and ``::`` at the end of a line as one colon."""
    lines = re.sub(r"(?m)(?<=\S)::$", ":", re.sub(r"(?m)^::$\n?", "", text)).splitlines()
    rules = [place for place, line in enumerate(lines) if _TABLE.match(line)]
    for first, last in zip(rules[::3], rules[2::3], strict=False):
        lines[first : last + 1] = [f"    {line}" for line in lines[first : last + 1]]
    return "\n".join(lines)
