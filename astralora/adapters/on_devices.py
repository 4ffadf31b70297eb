"""Compute the factors of adapters on devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..nn.attachment import What, attach
from ..nn.layer import BlackBoxLinear
from .adapted import AdaptedModel

__all__ = ["DeviceFactor", "put_on_devices"]

_FACTORS = ("A", "B")


class DeviceFactor(nn.Module):
    """Wrap a layer so that peft finds a ``weight``, whose dtype it reads.

    Args:
        layer: linear layer, which `astralora.attach` replaces by a device layer.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer: nn.Module = layer

    @property
    def weight(self) -> Tensor:
        """Return the controls of a device layer, or the weight of a digital one."""
        layer = self.layer
        weight = layer.controls if isinstance(layer, BlackBoxLinear) else layer.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the layer."""
        y: Tensor = self.layer(x)
        return y


def put_on_devices(adapted: AdaptedModel, devices: Mapping[str, What], **options: Any) -> None:
    """Compute factors of adapters on devices, in place.

    An adapter that is off does not query its devices. A factor B on a device does not start at zero, and thus changes
    the initial outputs of the model.

    Args:
        adapted: adapted model.
        devices: devices by adapter and factor, such as ``"model_layer_0.fc1.A"``; each one is a device with the inputs
            and outputs of the factor, or a function of these two numbers that makes a device.
        **options: options of `astralora.attach`, such as ``method``, ``estimator`` and ``samples``.

    Raises:
        ConfigurationError: an adapter or factor does not exist, or `astralora.attach` refuses; the model is unchanged.
    """
    names = {id(module): name for name, module in adapted.model.named_modules()}
    places: dict[str, What] = {}
    wrapped: list[tuple[nn.Module, str, nn.Linear]] = []
    for key, device in devices.items():
        unit_key, _, factor = key.rpartition(".")
        if factor not in _FACTORS:
            raise ConfigurationError(f"{key!r} names no factor of an adapter; append .A or .B to the adapter's key")
        module = adapted.unit(unit_key).factors[_FACTORS.index(factor)]
        if not isinstance(module, nn.Linear):
            raise ConfigurationError(f"{key!r} is on a device already")
        name = names[id(module)]
        parent_name, _, child = name.rpartition(".")
        parent = adapted.model.get_submodule(parent_name)
        if adapted.unit(unit_key).family == "lora":
            parent.add_module(child, DeviceFactor(module))
            wrapped.append((parent, child, module))
            name += ".layer"
        places[name] = device
    try:
        attach(adapted.model, places, **options)
    except Exception:
        for parent, child, module in wrapped:
            parent.add_module(child, module)
        raise
