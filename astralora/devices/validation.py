"""Describe wrong options in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import ValidationError

__all__ = ["Place", "dotted", "first_problem", "printable"]

Place = tuple[int | str, ...]
"""Keys and indices that lead to a value, the outermost first."""


_LONGEST = 400  # characters of a text from a file or a command line that a message shows


def printable(text: str) -> str:
    """Return a text in one line: control characters are escaped, and the middle of a long text is left out."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def dotted(place: Place) -> str:
    """Return the keys and indices of a place, joined by dots."""
    return ".".join(map(str, place))


def first_problem(
    error: ValidationError,
    known: Iterable[str] | Callable[[Place], Iterable[str]] | None = None,
    *,
    thing: str = "key",
    source: str = "",
    name: Callable[[Place], str] = dotted,
) -> str:
    """Describe the first problem of a ValidationError: ``place in source: message; known are a, b``.

    Args:
        error: error that a pydantic model has raised.
        known: valid keys to list if a key is unknown, or a function that returns them for the place of that key.
        thing: word for a key, such as "option".
        source: name of the file that contains the values; left out if empty.
        name: function that formats the place.
    """
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = problem["loc"]
    # pydantic puts this before the message of a ValueError that a validator raised.
    message = " ".join(problem["msg"].removeprefix("Value error, ").split())
    if problem["type"] == "extra_forbidden":
        message = f"there is no such {thing}"
        names = known(place) if callable(known) else known
        if names is not None:
            message += f"; known are {', '.join(names)}"
    where = " in ".join(part for part in (printable(name(place)), source) if part)
    return f"{where}: {message}" if where else message
