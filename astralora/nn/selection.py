"""Select layers of a model by name, by pattern or by type."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..common.errors import ConfigurationError
from .conv import BlackBoxConv2d
from .layer import BlackBoxLinear

__all__ = ["AttachableLayer", "Where", "matches", "name_list", "select_layers", "shown"]

Where = str | type[nn.Module]
"""A layer's name, a pattern of names such as ``"blocks.*.fc?"``, or a type of layers."""


@dataclass(frozen=True, slots=True)
class AttachableLayer:
    """Describe a layer that a device can compute, or that is on a device already.

    Attributes:
        aliases: names of the layer in the model; a tied layer has several.
        module: module of the layer.
    """

    aliases: tuple[str, ...]
    module: nn.Linear | nn.Conv2d | BlackBoxLinear

    @property
    def name(self) -> str:
        """Return the first name of the layer in the model."""
        return self.aliases[0]

    def matches(self, where: Where) -> bool:
        """Return whether a key matches one of the names or the type of the layer."""
        return any(matches(where, name, self.module) for name in self.aliases)


def select_layers(
    model: nn.Module, keys: Sequence[Where], exclude: Sequence[Where]
) -> list[tuple[AttachableLayer, Where]]:
    """Return the layers that match a key, each with the key that applies to it, in the order of the keys.

    If several keys match a layer, a name overrides a pattern, a pattern overrides a type, and of two keys of the same
    kind the first applies. A key selects the digital layers that it matches. If it matches no digital layer, it selects
    device layers.

    Raises:
        ConfigurationError: a key matches no layer.
    """
    for where in (*keys, *exclude):
        if not isinstance(where, str | type):
            raise ConfigurationError(f"a layer is named by its name, a pattern or a type, not by {where!r}")
    layers = _attachable_layers(model)
    candidates = [layer for layer in layers if not any(layer.matches(where) for where in exclude)]
    meant: dict[Where, list[AttachableLayer]] = {}
    for key in keys:
        found = [layer for layer in candidates if layer.matches(key)]
        meant[key] = [layer for layer in found if not isinstance(layer.module, BlackBoxLinear)] or found
        if not found:
            names = [alias for layer in layers for alias in layer.aliases]
            raise ConfigurationError(_no_match(key, names, excluding=bool(exclude)))
    selected = []
    for layer in candidates:
        matching = [key for key in keys if layer in meant[key]]
        if matching:
            selected.append((layer, min(matching, key=_rank)))
    # Sorted by key, so that an additional key does not change the seeds of the other layers.
    order = list(keys)
    return sorted(selected, key=lambda pair: next(i for i, key in enumerate(order) if pair[0] in meant[key]))


def matches(where: Where, name: str, module: nn.Module) -> bool:
    """Return whether a key matches a layer; a device layer also matches the type of the layer that it replaced."""
    if not isinstance(where, type):
        return fnmatchcase(name, where) if _is_pattern(where) else name == where
    if isinstance(module, where):
        return True
    replaced = nn.Conv2d if isinstance(module, BlackBoxConv2d) else nn.Linear
    return isinstance(module, BlackBoxLinear) and issubclass(replaced, where)


def shown(where: Where) -> str:
    """Format a key for a message."""
    return where.__name__ if isinstance(where, type) else repr(where)


def name_list(names: Sequence[str], most: int = 20) -> str:
    """Format a list of names for a message, with at most ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _attachable_layers(model: nn.Module) -> list[AttachableLayer]:
    aliases: dict[nn.Linear | nn.Conv2d | BlackBoxLinear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # Subclasses of the digital layers may compute something else.
        if isinstance(module, BlackBoxLinear) or type(module) in (nn.Linear, nn.Conv2d):
            assert isinstance(module, nn.Linear | nn.Conv2d | BlackBoxLinear)
            aliases.setdefault(module, []).append(name)
    return [AttachableLayer(tuple(names), module) for module, names in aliases.items()]


def _rank(where: Where) -> int:
    if isinstance(where, type):
        return 2
    return 1 if _is_pattern(where) else 0


def _is_pattern(where: str) -> bool:
    return any(mark in where for mark in "*?[")


def _no_match(where: Where, names: Sequence[str], *, excluding: bool) -> str:
    but = " that is not excluded" if excluding else ""
    if isinstance(where, type):
        return f"the model has no layer of type {where.__name__}{but}; devices replace nn.Linear and nn.Conv2d"
    near = difflib.get_close_matches(where, names, n=1, cutoff=0.6)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"the model has no nn.Linear named {where!r}{but}, nor a nn.Conv2d; "
        f"{guess}it has {name_list(names) or 'none at all'}"
    )
