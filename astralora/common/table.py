"""Tables of named classes: the way in for estimators, surrogates and whatever else can be swapped."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from .errors import ConfigurationError

__all__ = ["Table"]

_Kind = TypeVar("_Kind")


class Table(Generic[_Kind]):
    """Classes of one kind by name.

    Args:
        what: what the kind is called in messages.
        base: the class that all of them derive from.
    """

    def __init__(self, what: str, base: type[_Kind]) -> None:
        self._what = what
        self._base = base
        self._classes: dict[str, type[_Kind]] = {}

    def add(self, name: str, kind: type[_Kind], *, replace: bool = False) -> type[_Kind]:
        """Make a class known by name.

        Raises:
            TypeError: it does not derive from the table's base class.
            ValueError: the name is taken, and ``replace`` is not set.
        """
        if not (isinstance(kind, type) and issubclass(kind, self._base)):
            raise TypeError(f"{self._what} {name!r} must be a subclass of {self._base.__name__}")
        if name in self._classes and not replace:
            raise ValueError(f"there is a {self._what} named {name!r} already; pass replace=True")
        self._classes[name] = kind
        return kind

    def find(self, name: str) -> type[_Kind]:
        """The class of this name.

        Raises:
            ConfigurationError: there is none, with the names that there are.
        """
        if name not in self._classes:
            raise ConfigurationError(f"there is no {self._what} named {name!r}; known are {', '.join(self._classes)}")
        return self._classes[name]

    def make(self, name: str, **options: Any) -> _Kind:
        """An object of the class of this name, given those of the options that it takes."""
        kind = self.find(name)
        taken = inspect.signature(kind).parameters
        return kind(**{key: value for key, value in options.items() if key in taken})

    def takes(self, name: str) -> set[str]:
        """The options of the class of this name."""
        return set(inspect.signature(self.find(name)).parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)
