"""Which adapters a model gets, as TOML: one table for all layers alike, or one for each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from ..common.errors import ConfigurationError

__all__ = [
    "PROJECTIONS",
    "SHORTCUTS",
    "AdapterConfig",
    "Family",
    "Granularity",
    "Resolved",
    "family_of",
    "read_toml",
    "validated",
]

Family = Literal["lora", "shortcut"]
Granularity = Literal["network", "layer"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "fc1", "fc2")
"""The linear layers of a transformer layer by the names that configurations use, whatever a model calls them."""

SHORTCUTS = ("residual1", "residual2", "shortcut1", "shortcut2")
"""The low-rank shortcuts of a transformer layer."""

_Model = TypeVar("_Model", bound=BaseModel)

_LAYER = re.compile(r"model_layer_(\d+)")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Fraction = Field(default=0.0, ge=0, lt=1)
_Scale = Field(default=16.0, gt=0, allow_inf_nan=False)


class _Default(_Section):
    """What holds for every adapter that no other table speaks of; ``r`` is for both families."""

    r: PositiveInt = 8
    lora_alpha: float = _Scale
    lora_dropout: float = _Fraction
    disable_adapter: bool = False
    importance_alpha: NonNegativeFloat = 1.0
    shortcut_alpha: float = _Scale
    proj_dropout: float = _Fraction
    disable_projector: bool = False
    importance_beta: NonNegativeFloat = 1.0


class _LoraKeys(_Section):
    """Overrides for a projection's LoRA."""

    r: PositiveInt | None = None
    lora_alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lora_dropout: float | None = Field(default=None, ge=0, lt=1)
    disable_adapter: bool | None = None
    importance_alpha: NonNegativeFloat | None = None


class _ShortcutKeys(_Section):
    """Overrides for a shortcut's projector."""

    r: PositiveInt | None = None
    shortcut_alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    proj_dropout: float | None = Field(default=None, ge=0, lt=1)
    disable_projector: bool | None = None
    importance_beta: NonNegativeFloat | None = None


class _Table(_Section):
    """Overrides by adapter."""

    q_proj: _LoraKeys | None = None
    k_proj: _LoraKeys | None = None
    v_proj: _LoraKeys | None = None
    o_proj: _LoraKeys | None = None
    gate_proj: _LoraKeys | None = None
    fc1: _LoraKeys | None = None
    fc2: _LoraKeys | None = None
    residual1: _ShortcutKeys | None = None
    residual2: _ShortcutKeys | None = None
    shortcut1: _ShortcutKeys | None = None
    shortcut2: _ShortcutKeys | None = None


class Resolved(_Section):
    """What one adapter comes to, whichever family it is of.

    Attributes:
        rank: r.
        alpha: what is added is scaled by importance * alpha / r.
        dropout: of its input, while training.
        enabled: whether it is there at all.
        importance: 1, unless it is to count for less.
    """

    rank: int
    alpha: float
    dropout: float
    enabled: bool
    importance: float


class AdapterConfig(_Section):
    """Adapters of a whole model.

    ::

        granularity = "network"

        [default]
        r = 8
        disable_projector = true

        [all_layers.q_proj]
        r = 16

    With ``granularity = "layer"`` there is a table ``[model_layer_0.q_proj]`` and so on for each layer in place of
    ``[all_layers.q_proj]``. What no table speaks of is as in ``[default]``.

    Attributes:
        granularity: "network" or "layer".
        default: for every adapter.
        all_layers: overrides by adapter, for all layers.
        layers: overrides by layer, counted from 0, and adapter; ``[model_layer_N]`` in TOML.
    """

    granularity: Granularity = "network"
    default: _Default = _Default()
    all_layers: _Table = _Table()
    layers: dict[int, _Table] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ConfigurationError: no such file, no TOML, or a key or value that does not belong there.
        """
        return cls.parse(read_toml(path), str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "the configuration of adapters") -> Self:
        """Take nested values as they stand in TOML.

        Args:
            values: the tables.
            source: where they are from, for messages.

        Raises:
            ConfigurationError: a key or value that does not belong there.
        """
        plain = {key: value for key, value in values.items() if not _LAYER.fullmatch(key) and key != "layers"}
        layers = {int(match[1]): values[key] for key in values if (match := _LAYER.fullmatch(key))}
        for key in values:
            if key == "layers":
                raise ConfigurationError(f"layers in {source} is no table; known are {_KNOWN}")
        config = validated(cls, {**plain, "layers": layers}, source, known=_KNOWN)
        if config.granularity == "network" and layers:
            raise ConfigurationError(
                f"model_layer_{min(layers)} in {source} belongs to granularity 'layer', and here it is 'network'"
            )
        if config.granularity == "layer" and "all_layers" in values:
            raise ConfigurationError(f"all_layers in {source} belongs to granularity 'network', and here it is 'layer'")
        return config

    def resolve(self, layer: int, name: str) -> Resolved:
        """What an adapter comes to.

        Args:
            layer: counted from 0.
            name: one of `PROJECTIONS` or `SHORTCUTS`.
        """
        table = self.all_layers if self.granularity == "network" else self.layers.get(layer, _Table())
        over = getattr(table, name)
        values = self.default.model_dump()
        if over is not None:
            values |= over.model_dump(exclude_none=True)
        lora = family_of(name) == "lora"
        return Resolved(
            rank=values["r"],
            alpha=values["lora_alpha" if lora else "shortcut_alpha"],
            dropout=values["lora_dropout" if lora else "proj_dropout"],
            enabled=not values["disable_adapter" if lora else "disable_projector"],
            importance=values["importance_alpha" if lora else "importance_beta"],
        )

    def named(self) -> set[tuple[int | None, str]]:
        """The adapters that tables of their own speak of: (layer, name), the layer None for all."""
        tables: list[tuple[int | None, _Table]] = [(None, self.all_layers), *self.layers.items()]
        return {
            (layer, name)
            for layer, table in tables
            for name in (*PROJECTIONS, *SHORTCUTS)
            if getattr(table, name) is not None
        }

    def to_tables(self) -> dict[str, Any]:
        """Nested values as they stand in TOML."""
        tables: dict[str, Any] = {"granularity": self.granularity, "default": self.default.model_dump()}
        if self.granularity == "network":
            over = self.all_layers.model_dump(exclude_none=True)
            return {**tables, **({"all_layers": over} if over else {})}
        over = {f"model_layer_{i}": self.layers[i].model_dump(exclude_none=True) for i in sorted(self.layers)}
        return {**tables, **over}

    def to_toml(self) -> str:
        """The file that `load` reads back."""
        return tomli_w.dumps(self.to_tables())


_KNOWN = "granularity, default, all_layers and model_layer_0, model_layer_1, ..."


def family_of(name: str) -> Family:
    """Which family an adapter is of, by its name."""
    return "shortcut" if name in SHORTCUTS else "lora"


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigurationError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None


def validated(kind: type[_Model], values: Mapping[str, Any], source: str, known: str | None = None) -> _Model:
    """A pydantic model of these values.

    Args:
        kind: the model.
        values: nested.
        source: where they are from, for messages.
        known: the keys at the top, in words; the model's own unless given.

    Raises:
        ConfigurationError: names the first key that is unknown or has no legal value.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [f"model_layer_{part}" if isinstance(part, int) else str(part) for part in first["loc"]]
        where = ".".join(part for part in parts if part != "layers")
        if first["type"] != "extra_forbidden":
            raise ConfigurationError(f"{where} in {source}: {first['msg']}") from None
        keys = known if len(first["loc"]) == 1 and known else ", ".join(_keys(kind, first["loc"][:-1]))
        raise ConfigurationError(f"{where} in {source} is not known; known are {keys}") from None


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the model that a path of keys leads to."""
    for part in path:
        if isinstance(part, int):
            continue
        inner = model.model_fields[part].annotation
        candidates = [inner, *get_args(inner)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
