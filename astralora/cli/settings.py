"""Turn the options of a command into its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from ..common.errors import ConfigurationError
from ..devices import DeviceError
from ..devices.parsing import parse_toml
from ..devices.validation import first_problem, printable
from .options import Set

__all__ = ["ConfigOptions", "default_of", "nest", "parse_settings", "top_keys", "validated"]

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Hold the options of a command that set keys of its configuration.

    Attributes:
        keys: dotted key of the configuration by name of the field.
        open_keys: top-level keys whose content is checked only when the configuration is loaded.
        settings: ``--set`` as KEY=VALUE, which override the other options.
    """

    keys: ClassVar[Mapping[str, str]] = {}
    open_keys: ClassVar[frozenset[str]] = frozenset()

    settings: Set = None

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the class of the configuration."""
        raise NotImplementedError

    def given(self) -> dict[str, Any]:
        """Return the options that were given, without ``--set``, by dotted key."""
        values = {key: getattr(self, name) for name, key in self.keys.items() if getattr(self, name) is not None}
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}

    def overrides(self) -> dict[str, Any]:
        """Return all options that were given as nested tables."""
        return nest(self.given() | parse_settings(self.settings, self.model(), self.open_keys))


def parse_settings(
    settings: list[str] | None, model: type[BaseModel], open_keys: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Parse the values of ``--set KEY=VALUE``.

    Args:
        settings: KEY=VALUE each; a value is TOML, or a word without quotes.
        model: class of the configuration that has the keys.
        open_keys: top-level keys whose content is not checked here.

    Returns:
        Values by dotted key.

    Raises:
        ConfigurationError: an entry is not KEY=VALUE, or the configuration does not have the key.
    """
    values: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not key:
            raise ConfigurationError(f"--set takes KEY=VALUE, not {printable(setting)!r}")
        if key.partition(".")[0] not in open_keys:
            _check_key(key, model)
        if key in values:
            raise ConfigurationError(f"--set {key} is given twice; give it once")
        values[key] = _parse(value)
    return values


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn values by dotted key into nested tables."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigurationError(f"{key} cannot be set: {part} is a value and has no keys")
        table[last] = value
    return tables


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Make a configuration from nested tables.

    Raises:
        ConfigurationError: a value is not valid; the message names its key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(first_problem(error, model.model_fields, source="the configuration")) from None


def default_of(options: type[ConfigOptions], name: str) -> str | None:
    """Return the default of an option as help shows it, or None where the configuration has none."""
    if name not in options.keys:
        return None
    section: type[BaseModel] | None = options.model()
    *path, last = options.keys[name].split(".")
    for part in path:
        section = _section(section, part) if section is not None else None
    field = section.model_fields.get(last) if section is not None else None
    if field is None or field.default in (None, PydanticUndefined):
        return None
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def top_keys(model: type[BaseModel]) -> list[str]:
    """Return the keys of a configuration as messages show them: sections and tables as ``section.*``."""
    sections = {name for name in model.model_fields if _section(model, name) is not None or _is_table(model, name)}
    return [f"{name}.*" if name in sections else name for name in model.model_fields]


def _check_key(key: str, model: type[BaseModel]) -> None:
    """Refuse a dotted key that the configuration does not have."""
    section = model
    parts = key.split(".")
    for place, part in enumerate(parts):
        if part not in section.model_fields:
            known = ", ".join(top_keys(section))
            raise ConfigurationError(f"{printable(key)} in the configuration: there is no such key; known are {known}")
        below = _section(section, part)
        if below is None:
            if place + 1 < len(parts) and not _is_table(section, part):
                raise ConfigurationError(f"{key} cannot be set: {part} is a value and has no keys")
            return
        section = below
    raise ConfigurationError(
        f"{key} in the configuration is a table; set one of its keys: {', '.join(top_keys(section))}"
    )


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the class of a section of the configuration, or None where the key holds a value."""
    annotation = model.model_fields[name].annotation
    candidates = [annotation, *get_args(annotation)]
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _is_table(model: type[BaseModel], name: str) -> bool:
    """Report whether a key holds a table with keys of the user's choice."""
    return getattr(model.model_fields[name].annotation, "__origin__", None) is dict


def _parse(text: str) -> Any:
    """Return the value of a text: TOML, or the text itself where it is a word without quotes."""
    try:
        found = parse_toml(f"value = {text}", "the value")
    except DeviceError:
        return text
    # A line break in the text could begin another key.
    return found["value"] if list(found) == ["value"] else text
