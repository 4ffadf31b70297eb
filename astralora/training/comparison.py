"""Compare the configuration of a run with the one that its checkpoint contains."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from ..common.errors import ConfigurationError

__all__ = ["Configuration", "refuse_changes"]

_SHOWN = 6  # keys in a message
_WIDTH = 60  # characters of a value in a message


class Configuration(Protocol):
    """Describe a run, in TOML and back."""

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Merge the defaults, a TOML file and nested ``overrides``."""
        ...

    def to_toml(self) -> str:
        """Return the complete configuration as TOML."""
        ...


def refuse_changes(config: Configuration, saved: str, folder: Path) -> None:
    """Refuse a configuration whose values differ from those that a run began with.

    Args:
        config: present configuration.
        saved: configuration that the run began with, as TOML.
        folder: folder of the run, for the message.

    Raises:
        ConfigurationError: values differ; the message lists their keys and both values.
    """
    now = dict(_flatten(tomllib.loads(config.to_toml())))
    before = dict(_flatten(tomllib.loads(_complete(config, saved))))
    changes = [
        f"{key} is {_show(now.get(key))} instead of {_show(before.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if now.get(key) != before.get(key)
    ]
    if changes:
        more = f", and {len(changes) - _SHOWN} more keys differ" if len(changes) > _SHOWN else ""
        raise ConfigurationError(
            f"{folder / 'config.toml'} differs from the configuration that the run began with: "
            f"{', '.join(changes[:_SHOWN])}{more}; restore these values, or begin a new run with --config"
        )


def _complete(config: Configuration, saved: str) -> str:
    """Add the defaults of keys that an earlier version did not have."""
    try:
        return type(config).load(None, tomllib.loads(saved)).to_toml()
    except ConfigurationError:
        return saved


def _flatten(table: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Return every value of nested tables, as text, by its dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{place}{key}.")
        elif not isinstance(value, Mapping):
            yield f"{place}{key}", json.dumps(value, ensure_ascii=False, default=str)


def _show(text: str | None) -> str:
    """Return a value for a message."""
    if text is None:
        return "not set"
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."
