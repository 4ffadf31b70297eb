"""Build device layers that replace other layers of a model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import Device, DeviceSpec, Session
from .conv import BlackBoxConv2d
from .digital import largest_entries
from .layer import BlackBoxLinear

__all__ = ["Place", "check_reattachment", "is_on", "layer_width", "put_layer", "reattach", "replace_digital"]

_CONV_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


@dataclass(slots=True)
class Place:
    """Describe the replacement of one layer of a model.

    Attributes:
        name: name of the layer in the model.
        old: layer to replace.
        session: session of the device for the new layer.
        options: options of the new layer.
        initialize: ``"device"`` or ``"fit"``; see `astralora.nn.attachment.attach`.
        digital_fraction: share of the weights that stay digital.
        options_given: whether the caller gave options for this layer.
    """

    name: str
    old: nn.Linear | nn.Conv2d | BlackBoxLinear
    session: Session
    options: dict[str, Any]
    initialize: str
    digital_fraction: float
    options_given: bool


def layer_width(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of inputs and outputs that a device must have to compute a layer.

    Args:
        module: an `nn.Linear`, an `nn.Conv2d`, or a device layer.
    """
    if isinstance(module, nn.Conv2d):
        return module.in_channels * prod(module.kernel_size), module.out_channels
    assert isinstance(module, nn.Linear | BlackBoxLinear)
    return module.in_features, module.out_features


def put_layer(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a layer of a model by another, under all its names in the model."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            path, _, child = name.rpartition(".")
            parent = model.get_submodule(path)
            setattr(parent, child, new)
            if isinstance(parent, nn.TransformerEncoderLayer):
                # The fast path for inference is switched off, because it reads weights that device layers do not have.
                device = any(isinstance(part, BlackBoxLinear) for part in parent.children())
                codes = {nn.functional.relu: 1, nn.functional.gelu: 2}
                parent.activation_relu_or_gelu = 0 if device else codes.get(parent.activation, 0)


# -- in place of a digital layer ---------------------------------------------------------------


def replace_digital(place: Place, old: nn.Linear | nn.Conv2d) -> BlackBoxLinear:
    """Return a device layer that replaces a digital layer, with the same bias and output strength."""
    weight = old.weight.detach().flatten(1)
    digital = largest_entries(weight, place.digital_fraction) if place.digital_fraction else None
    options = {**place.options, "bias": old.bias is not None, "dtype": old.weight.dtype, "digital": digital}
    new = _make_layer(place.session, options, old).to(old.weight.device)
    _take_over(old, new, weight if digital is None else weight - digital)
    if place.initialize == "fit":
        new.fit(weight)
    return new


def _make_layer(
    session: Session, options: dict[str, Any], like: nn.Linear | nn.Conv2d | BlackBoxLinear
) -> BlackBoxLinear:
    if isinstance(like, nn.Conv2d | BlackBoxConv2d):
        geometry = {name: getattr(like, name) for name in _CONV_ARGUMENTS}
        return BlackBoxConv2d(session, **geometry, **options)
    return BlackBoxLinear(session, **options)


def _take_over(old: nn.Linear | nn.Conv2d, new: BlackBoxLinear, weight: Tensor) -> None:
    new.train(old.training)
    new.controls.requires_grad_(old.weight.requires_grad)
    with torch.no_grad():
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias).requires_grad_(old.bias.requires_grad)
        if new.gain is not None:
            # Change the output strength from the default of nn.Linear to that of these weights, for inputs of +-1.
            new.gain.mul_(weight.norm() / sqrt(len(weight)) * sqrt(3))
            new.gain.requires_grad_(old.weight.requires_grad)
        if new.digital is not None:
            new.digital.requires_grad_(old.weight.requires_grad)


# -- in place of a device layer ----------------------------------------------------------------


def is_on(layer: BlackBoxLinear, device: Device) -> bool:
    """Return whether a layer is on this device already, with or without a session around the device."""
    return _innermost(layer.session) is _innermost(device)


def check_reattachment(place: Place, old: BlackBoxLinear) -> None:
    """Refuse options that cannot be applied to a layer that is on a device already.

    Raises:
        ConfigurationError: an option cannot be applied; the message says to detach the layer first.
    """
    remedy = f"call al.detach(model, [{place.name!r}]) first"
    here = f"layer {place.name!r} is on device {old.session.spec.name!r} already"
    has_gain = old.gain is not None
    if bool(place.options.get("gain", has_gain)) != has_gain:
        raise ConfigurationError(f"{here}, {'with' if has_gain else 'without'} a gain; {remedy}")
    if is_on(old, place.session):
        return
    if place.initialize == "fit" and not _same_kind(old.session.spec, place.session.spec):
        raise ConfigurationError(f"{here}, so it has no digital weights to fit; {remedy}")
    if place.digital_fraction and old.digital is None:
        raise ConfigurationError(f"{here}, so it has no digital weights to keep; {remedy}")


def reattach(place: Place, old: BlackBoxLinear) -> BlackBoxLinear:
    """Return the layer that replaces a device layer, or this layer itself; see `astralora.nn.attachment.attach`."""
    if is_on(old, place.session):
        if place.options_given:
            old.use_method(**{name: value for name, value in place.options.items() if name != "gain"})
        return old
    digital = None
    if old.digital_places is not None:
        digital = torch.zeros(old.out_features, old.in_features)
        digital[tuple(old.digital_places.cpu())] = 1.0  # marks the entries; their values are set below
    options = {"gain": old.gain is not None, **place.options}
    options |= {"bias": old.bias is not None, "dtype": old.controls.dtype, "digital": digital}
    new = _make_layer(place.session, options, old).to(old.controls.device).train(old.training)
    # The same parameter objects are used, so that an existing optimizer continues to train them.
    new.bias, new.digital = old.bias, old.digital
    if _same_kind(old.session.spec, place.session.spec):
        new.controls, new.gain = old.controls, old.gain
    else:
        new.controls.requires_grad_(old.controls.requires_grad)
    return new


def _innermost(device: Device) -> Device:
    while isinstance(device, Session):
        device = device.device
    return device


def _same_kind(one: DeviceSpec, other: DeviceSpec) -> bool:
    """Return whether the same controls have the same meaning on both devices."""
    return (one.name, one.num_controls, one.control_range) == (other.name, other.num_controls, other.control_range)
