"""Putting devices into an existing model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import nn

from devices import Device, Session, derive_seed

from .errors import ConfigurationError
from .layer import BlackBoxLinear, check_layer

__all__ = ["attach"]


def attach(model: nn.Module, layers: Mapping[str, Device], **options: Any) -> nn.Module:
    """Replace linear layers of a model by devices, in place.

    Each device layer starts with the bias of the layer that it replaces, and with outputs as strong as that
    layer's; its controls start where the device suggests. All is checked before the first device is
    touched.

    Args:
        model: any module that contains the layers.
        layers: the device for each layer, by the layer's name as in ``model.named_modules()``.
        **options: for every `BlackBoxLinear`, such as ``method="paper"`` and ``samples=10``.

    Returns:
        The same model; a new one only where the model is itself the layer, named ``""``.

    Raises:
        ConfigurationError: a name that is no linear layer, or a device of another width.
    """
    # Tied layers stand under several names, and are replaced under all of them.
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {name: module for name, module in modules.items() if type(module) is nn.Linear}
    seed = options.pop("seed", 0)
    sessions: dict[int, Session] = {}
    for name, device in layers.items():
        _check(name, device, linear)
        # A chip at two places is still one chip: one guard has to know what it holds.
        session = sessions.setdefault(id(device), device if isinstance(device, Session) else Session(device))
        check_layer(session, **options)
    for what in ("estimator", "surrogate"):
        if len(layers) > 1 and not isinstance(options.get(what), str | None):
            raise ConfigurationError(
                f"one {what} cannot serve {len(layers)} layers; give its name, and each gets its own"
            )
    for place, (name, device) in enumerate(layers.items()):
        old = linear[name]
        new = BlackBoxLinear(
            sessions[id(device)],
            bias=old.bias is not None,
            dtype=old.weight.dtype,
            # Layers of equal size must not start alike.
            seed=derive_seed(seed, name) if place else seed,
            **options,
        ).to(old.weight.device)
        _take_over(old, new)
        if not name:
            return new
        for other, module in modules.items():
            if module is old:
                parent, _, child = other.rpartition(".")
                setattr(model.get_submodule(parent), child, new)
    return model


def _take_over(old: nn.Linear, new: BlackBoxLinear) -> None:
    new.train(old.training)
    new.controls.requires_grad_(old.weight.requires_grad)
    with torch.no_grad():
        if new.bias is not None:
            new.bias.copy_(old.bias).requires_grad_(old.bias.requires_grad)
        if new.gain is not None:
            # From nn.Linear's usual strength for inputs of +-1 to this very layer's.
            new.gain.mul_(old.weight.norm() / sqrt(old.out_features) * sqrt(3))
            new.gain.requires_grad_(old.weight.requires_grad)


def _check(name: str, device: Device, linear: Mapping[str, nn.Linear]) -> None:
    if name not in linear:
        near = difflib.get_close_matches(name, linear, n=1, cutoff=0.6)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"the model has no nn.Linear named {name!r}; {guess}it has {_listed(list(linear)) or 'none at all'}"
        )
    spec, layer = device.spec, linear[name]
    if (spec.in_features, spec.out_features) != (layer.in_features, layer.out_features):
        raise ConfigurationError(
            f"layer {name!r} maps {layer.in_features} to {layer.out_features} features, "
            f"but device {spec.name!r} maps {spec.in_features} to {spec.out_features}"
        )


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
