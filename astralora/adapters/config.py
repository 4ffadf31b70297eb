"""Configure the adapters of a model in TOML, by one table for all layers or one for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from ..common.errors import ConfigurationError
from ..devices.files import file_name
from ..devices.parsing import read_toml
from ..devices.validation import Described, Place, first_problem

__all__ = [
    "LAYER",
    "PROJECTIONS",
    "SHORTCUTS",
    "AdapterConfig",
    "Family",
    "Granularity",
    "Resolved",
    "family_of",
    "validate",
]

Family = Literal["lora", "shortcut"]
Granularity = Literal["network", "layer"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "fc1", "fc2")
"""Names of a transformer layer's linear layers in configurations, the same for all models."""

SHORTCUTS = ("residual1", "residual2", "shortcut1", "shortcut2")
"""Names of a transformer layer's low-rank shortcuts."""

_Model = TypeVar("_Model", bound=BaseModel)

LAYER = re.compile(r"model_layer_(0|[1-9][0-9]{0,5})")
"""Key of a layer's table, with the number of the layer."""


class _Section(Described):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Fraction = Field(default=0.0, ge=0, lt=1)
_Scale = Field(default=16.0, gt=0, allow_inf_nan=False)


class _Default(_Section):
    """Hold the default options of all adapters; ``r`` applies to both families."""

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
    """Override options of a projection's LoRA."""

    r: PositiveInt | None = None
    lora_alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lora_dropout: float | None = Field(default=None, ge=0, lt=1)
    disable_adapter: bool | None = None
    importance_alpha: NonNegativeFloat | None = None


class _ShortcutKeys(_Section):
    """Override options of a shortcut's projector."""

    r: PositiveInt | None = None
    shortcut_alpha: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    proj_dropout: float | None = Field(default=None, ge=0, lt=1)
    disable_projector: bool | None = None
    importance_beta: NonNegativeFloat | None = None


class _Table(_Section):
    """Hold overrides by adapter."""

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
    """Hold the options of one adapter of either family, after all overrides.

    Attributes:
        rank: rank r.
        alpha: alpha in the scale of the adapter's output, importance * alpha / r.
        dropout: dropout rate of its input in training.
        enabled: whether the model has this adapter.
        importance: further factor of its output, 1 by default.
    """

    rank: int
    alpha: float
    dropout: float
    enabled: bool
    importance: float


class AdapterConfig(_Section):
    """Configure the adapters of a model.

    ::

        granularity = "network"

        [default]
        r = 8
        disable_projector = true

        [all_layers.q_proj]
        r = 16

    With ``granularity = "layer"``, tables ``[model_layer_0.q_proj]``, ``[model_layer_1.q_proj]`` and so on replace
    ``[all_layers.q_proj]``. Options without an override are those in ``[default]``.

    Attributes:
        granularity: "network" or "layer".
        default: options of every adapter.
        all_layers: overrides by adapter, for all layers.
        layers: overrides by layer, counted from 0, and adapter; ``[model_layer_N]`` in TOML.
    """

    granularity: Granularity = "network"
    default: _Default = _Default()
    all_layers: _Table = _Table()
    layers: dict[int, _Table] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ConfigurationError: the file cannot be read, is not TOML, or has an unknown key or an invalid value.
        """
        return cls.parse(read_toml(path, error=ConfigurationError), file_name(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "the configuration of adapters") -> Self:
        """Make a configuration from nested tables as in TOML.

        Args:
            values: the tables.
            source: origin of the tables, for messages.

        Raises:
            ConfigurationError: a key is unknown, or a value is invalid.
        """
        plain = {key: value for key, value in values.items() if not LAYER.fullmatch(key) and key != "layers"}
        layers = {int(match[1]): values[key] for key in values if (match := LAYER.fullmatch(key))}
        for key in values:
            if key == "layers":
                raise ConfigurationError(f"layers in {source} is not a known table; known are {_TOP_KEYS}")
        config = validate(cls, {**plain, "layers": layers}, source, known=_TOP_KEYS)
        if config.granularity == "network" and layers:
            raise ConfigurationError(
                f"model_layer_{min(layers)} in {source} needs granularity 'layer', and the granularity is 'network'"
            )
        if config.granularity == "layer" and "all_layers" in values:
            raise ConfigurationError(
                f"all_layers in {source} needs granularity 'network', and the granularity is 'layer'"
            )
        return config

    def resolve(self, layer: int, name: str) -> Resolved:
        """Return the options of an adapter, after all overrides.

        Args:
            layer: number of the layer, from 0.
            name: one of `PROJECTIONS` or `SHORTCUTS`.
        """
        table = self.all_layers if self.granularity == "network" else self.layers.get(layer, _Table())
        overrides = getattr(table, name)
        values = self.default.model_dump()
        if overrides is not None:
            values |= overrides.model_dump(exclude_none=True)
        lora = family_of(name) == "lora"
        return Resolved(
            rank=values["r"],
            alpha=values["lora_alpha" if lora else "shortcut_alpha"],
            dropout=values["lora_dropout" if lora else "proj_dropout"],
            enabled=not values["disable_adapter" if lora else "disable_projector"],
            importance=values["importance_alpha" if lora else "importance_beta"],
        )

    def named(self) -> set[tuple[int | None, str]]:
        """Return the adapters that have a table, as (layer, name); the layer is None for all layers."""
        tables: list[tuple[int | None, _Table]] = [(None, self.all_layers), *self.layers.items()]
        return {
            (layer, name)
            for layer, table in tables
            for name in (*PROJECTIONS, *SHORTCUTS)
            if getattr(table, name) is not None
        }

    def to_tables(self) -> dict[str, Any]:
        """Return the nested tables as in TOML."""
        tables: dict[str, Any] = {"granularity": self.granularity, "default": self.default.model_dump()}
        if self.granularity == "network":
            overrides = self.all_layers.model_dump(exclude_none=True)
            return {**tables, **({"all_layers": overrides} if overrides else {})}
        overrides = {f"model_layer_{i}": self.layers[i].model_dump(exclude_none=True) for i in sorted(self.layers)}
        return {**tables, **overrides}

    def to_toml(self) -> str:
        """Return the text of a file that `load` reads."""
        return tomli_w.dumps(self.to_tables())


_TOP_KEYS = "granularity, default, all_layers and model_layer_0, model_layer_1, ..."


def family_of(name: str) -> Family:
    """Return the family of an adapter by its name."""
    return "shortcut" if name in SHORTCUTS else "lora"


def validate(kind: type[_Model], values: Mapping[str, Any], source: str, known: str | None = None) -> _Model:
    """Make a pydantic model from nested values.

    Args:
        kind: class of the model.
        values: the nested values.
        source: origin of the values, for messages.
        known: text that lists the top-level keys, for messages; the fields of the model unless given.

    Raises:
        ConfigurationError: a key is unknown, or a value is invalid; the message names the first one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:

        def keys(place: Place) -> Iterable[str]:
            return [known] if len(place) == 1 and known else _keys(kind, place[:-1])

        raise ConfigurationError(first_problem(error, keys, source=source, name=_key)) from None


def _key(place: Place) -> str:
    """Return the key of a place in the file, with layers named model_layer_N."""
    parts = [f"model_layer_{part}" if isinstance(part, int) else part for part in place]
    return ".".join(part for part in parts if part != "layers")


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the nested model at a path of keys."""
    for part in path:
        if isinstance(part, int):
            continue
        inner = model.model_fields[part].annotation
        candidates = [inner, *get_args(inner)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
