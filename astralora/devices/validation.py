"""Describe wrong options in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

__all__ = ["Described", "Place", "Seed", "check_options", "dotted", "first_problem", "printable"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Seed of random numbers, which every file format can hold."""

Place = tuple[int | str, ...]
"""Keys and indices that lead to a value, the outermost first."""


_LONGEST = 400  # characters of a text from a file or a command line that a message shows


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return a text in one line: control characters are escaped, and the middle of a long text is left out."""
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-longest // 2 :]}"
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


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _DescribesProblems
else:

    class _DescribesProblems(type(BaseModel)):
        """Turn the error of a call of the class into one sentence; `BaseModel.model_validate` is unchanged."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            except ValidationError as error:
                raise ValueError(
                    first_problem(error, self.model_fields, thing="option", source=self.__name__)
                ) from None


class Described(BaseModel, metaclass=_DescribesProblems):
    """Describe wrong values in one sentence where the class is called, as in ``Budget(program=1)``.

    Raises:
        ValueError: a value is not valid; the message names it.
    """


_SIZES = ("in_features", "out_features")
_LARGEST = 2**24


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse sizes and seeds of a device that are out of range, before its factory computes with them.

    Raises:
        ValueError: an option is out of range; the message names it.
    """
    for name in _SIZES:
        if name in options and not _is_whole(options[name], 1, _LARGEST):
            raise ValueError(f"{name} must be a whole number from 1 to {_LARGEST:,}, not {options[name]!r}")
    if options.get("seed") is not None and not _is_whole(options["seed"], 0, 2**63 - 1):
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, not {printable(repr(options['seed']))}")


def _is_whole(value: object, low: int, high: int) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and low <= value.__index__() <= high
