"""Adapters whose products are computed by devices."""

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
    """A device layer where peft expects a linear layer, of whose weight it asks the type.

    Args:
        layer: computes.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer: nn.Module = layer

    @property
    def weight(self) -> Tensor:
        """The controls, or the weight of a layer that was made digital again."""
        layer = self.layer
        found = layer.controls if isinstance(layer, BlackBoxLinear) else layer.weight
        assert isinstance(found, Tensor)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Through the layer."""
        found: Tensor = self.layer(x)
        return found


def put_on_devices(adapted: AdaptedModel, devices: Mapping[str, What], **options: Any) -> None:
    """Let devices compute factors of adapters, in place.

    An adapter that is switched off is not computed at all: its devices are asked nothing. A factor B on a device does
    not begin at zero, so that the model does not begin as it was.

    Args:
        adapted: the model.
        devices: by adapter and factor, such as ``"model_layer_0.fc1.A"``: a device of as many inputs and outputs, or a
            function of both that makes one.
        **options: for `astralora.attach`, such as ``method``, ``estimator`` and ``samples``.

    Raises:
        ConfigurationError: there is no such adapter or factor, or what `astralora.attach` refuses; nothing was done.
    """
    names = {id(module): name for name, module in adapted.model.named_modules()}
    places: dict[str, What] = {}
    wrapped: list[tuple[nn.Module, str, nn.Linear]] = []
    for key, device in devices.items():
        unit_key, _, factor = key.rpartition(".")
        if factor not in _FACTORS:
            raise ConfigurationError(f"{key!r} names no factor of an adapter; put .A or .B behind its key")
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
