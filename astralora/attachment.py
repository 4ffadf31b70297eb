"""Putting devices into an existing model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import nn

from devices import Device

from .errors import ConfigurationError
from .layer import BlackBoxLinear

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
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    for name, device in layers.items():
        _check(name, device, linear)
    for name, device in layers.items():
        old = linear[name]
        new = BlackBoxLinear(device, bias=old.bias is not None, dtype=old.weight.dtype, **options).to(old.weight.device)
        new.train(old.training)
        with torch.no_grad():
            if new.bias is not None:
                new.bias.copy_(old.bias)
            if new.gain is not None:
                # From nn.Linear's usual strength for inputs of +-1 to this very layer's.
                new.gain.mul_(old.weight.norm() / sqrt(old.out_features) * sqrt(3))
        if not name:
            return new
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model


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
