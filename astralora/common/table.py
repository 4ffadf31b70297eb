"""Find estimators, surrogates and other exchangeable classes by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from .errors import ConfigurationError

__all__ = ["Table"]

_Kind = TypeVar("_Kind")


class Table(Generic[_Kind]):
    """Hold classes of one kind by name.

    Args:
        what: name of the kind, for messages.
        base: base class of all classes in the table.
    """

    def __init__(self, what: str, base: type[_Kind]) -> None:
        self._what = what
        self._base = base
        self._classes: dict[str, type[_Kind]] = {}

    def add(self, name: str, kind: type[_Kind], *, replace: bool = False) -> type[_Kind]:
        """Add a class under a name, and return the class.

        Args:
            name: name of the class.
            kind: class to add.
            replace: whether to replace a class that has this name already.

        Raises:
            TypeError: the class does not derive from the table's base class.
            ValueError: another class has this name, and ``replace`` is not set.
        """
        if not (isinstance(kind, type) and issubclass(kind, self._base)):
            raise TypeError(f"{self._what} {name!r} must be a subclass of {self._base.__name__}")
        if name in self._classes and not replace:
            raise ValueError(f"there is a {self._what} named {name!r} already; pass replace=True to replace it")
        self._classes[name] = kind
        return kind

    def find(self, name: str) -> type[_Kind]:
        """Return the class that was added under a name.

        Raises:
            ConfigurationError: there is no class with this name; the message lists all names.
        """
        if name not in self._classes:
            raise ConfigurationError(f"there is no {self._what} named {name!r}; known are {', '.join(self._classes)}")
        return self._classes[name]

    def make(self, name: str, **options: Any) -> _Kind:
        """Make an object of the class that was added under a name; ignore options that the class does not take."""
        kind = self.find(name)
        taken = inspect.signature(kind).parameters
        return kind(**{key: value for key, value in options.items() if key in taken})

    def takes(self, name: str) -> set[str]:
        """Return the names of the options of the class that was added under a name."""
        return set(inspect.signature(self.find(name)).parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)
