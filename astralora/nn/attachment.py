"""Put devices into an existing model, and take them out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..common.errors import ConfigurationError
from ..devices import Device, Session, derive_seed
from ..probing.encoding import choose_encoding
from .layer import BlackBoxLinear
from .methods import choose_method
from .replacement import Place, check_reattachment, is_on, layer_width, put_layer, reattach, replace_digital
from .selection import AttachableLayer, Where, matches, name_list, select_layers, shown

__all__ = ["ATTACH_OPTIONS", "What", "attach", "detach", "layer_width"]

ATTACH_OPTIONS = ("initialize", "digital_fraction")
"""Options of `attach` that concern the digital layer to replace, not the device layer."""

What = Device | Callable[[int, int], Device]
"""A device, or a function that makes one for a layer, given its numbers of inputs and outputs."""

# The keys are of type Where. To a type checker a mapping's keys are invariant: it would refuse {nn.Linear: device}.
Layers = Mapping[Any, What]
Options = Mapping[Any, Mapping[str, Any]]


def attach(
    model: nn.Module,
    layers: Layers,
    *,
    exclude: Iterable[Where] = (),
    per_layer: Options | None = None,
    initialize: Literal["device", "fit"] = "device",
    digital_fraction: float = 0.0,
    **options: Any,
) -> nn.Module:
    """Replace linear layers and 2-d convolutions of a model by device layers, in place; `detach` undoes it.

    Each device layer starts with the bias and the output strength of the layer that it replaces. Everything is checked
    before the first device is operated.

    A layer that is on a device already may be attached again, as in a notebook cell that runs twice. On the same
    device it stays as it is; options, where given, choose estimator, surrogate and encoding anew. On another device of
    the same size a new layer takes its place and keeps bias and digital weights, and on a device of the same kind also
    controls and gain. To keep trained weights on a device of another kind, call `detach` first.

    Args:
        model: any module that contains the layers.
        layers: device for each layer, by the layer's name as in ``model.named_modules()``, by a pattern of names
            (``"encoder.*"``; a star also matches dots), or by type (``nn.Linear``, ``nn.Conv2d``). A name goes before
            a pattern, and a pattern before a type. A device at several places is one chip that they share in turn; a
            function of (in_features, out_features) makes a device for each layer.
        exclude: names, patterns and types of layers to leave as they are.
        per_layer: options for matching layers, which override the common ones; later entries override earlier ones.
        initialize: start the controls where the ``"device"`` suggests, or ``"fit"`` them to the layer's weights; the
            error of the fit is in the new layer's ``fit_residual``.
        digital_fraction: share of each layer's weights, the largest, that stay digital beside the device and are
            trained with it; 0 for none. With ``initialize="fit"`` the device starts from the others: the sparse +
            device layer of arXiv 2509.15113.
        **options: options of every `BlackBoxLinear`, such as ``method="paper"`` and ``samples=10``.

    Returns:
        The same model; a new one only where the model is itself the layer, named ``""``.

    Raises:
        ConfigurationError: a key matches no layer, a device has another width, or options do not suit.
    """
    for place in _plan(model, layers, tuple(exclude), per_layer or {}, initialize, digital_fraction, options):
        old = place.old
        new = reattach(place, old) if isinstance(old, BlackBoxLinear) else replace_digital(place, old)
        if not place.name:
            return new
        put_layer(model, old, new)
    return model


def detach(model: nn.Module, layers: Iterable[Where] | None = None, *, repeats: int = 4) -> nn.Module:
    """Replace device layers by digital ones that compute the same, in place: the reverse of `attach`.

    The transfer matrix is measured; with gain and digital part it becomes the new layer's weight. The devices stay
    open.

    Args:
        model: any module that contains device layers.
        layers: names, patterns or types of the layers to replace; None for all.
        repeats: times that each measuring vector is sent; the error of the weights falls with the square root of it.

    Returns:
        The same model; a new one only where the model is itself the layer.

    Raises:
        ConfigurationError: a key matches no device layer, or a device is not linear; nothing was replaced.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, BlackBoxLinear)}
    if layers is not None:
        keys = tuple(layers)
        for where in keys:
            if not any(matches(where, name, module) for name, module in found.items()):
                raise ConfigurationError(
                    f"the model has no device layer {shown(where)}; it has {name_list(list(found)) or 'none at all'}"
                )
        found = {name: module for name, module in found.items() if any(matches(key, name, module) for key in keys)}
    for name, module in found.items():
        if not module.session.spec.linear:
            raise ConfigurationError(
                f"layer {name!r} is on {module.session.spec.name!r}, which is not linear: it has no weights to measure"
            )
    # All are measured before the first is replaced: if a chip fails, the model stays as it is.
    digital = {name: module.to_digital(repeats) for name, module in found.items()}
    for name, module in found.items():
        if not name:
            return digital[name]
        put_layer(model, module, digital[name])
    return model


# -- planning: all checks, before the first device is operated ---------------------------------


def _plan(
    model: nn.Module,
    layers: Layers,
    exclude: Sequence[Where],
    per_layer: Options,
    initialize: str,
    digital_fraction: float,
    options: Mapping[str, Any],
) -> list[Place]:
    selected = [(layer, _make_device(layers[key], layer)) for layer, key in select_layers(model, list(layers), exclude)]
    for where in per_layer:
        if not any(layer.matches(where) for layer, _ in selected):
            raise ConfigurationError(f"per_layer has options for {shown(where)}, which is none of the layers to attach")
    sessions: dict[int, Session] = {}
    for layer, device in selected:
        if isinstance(layer.module, BlackBoxLinear) and is_on(layer.module, device):
            sessions[id(device)] = layer.module.session
    seed = options.get("seed", 0)
    places: list[Place] = []
    for number, (layer, device) in enumerate(selected):
        own = {name: value for key, its in per_layer.items() if layer.matches(key) for name, value in its.items()}
        merged = {"initialize": initialize, "digital_fraction": digital_fraction, **options, **own}
        # Layers of equal size must not start alike.
        merged["seed"] = own.get("seed", derive_seed(seed, layer.name) if number else seed)
        _check_width(layer, device)
        # A chip at two places is still one chip, and needs one session that stores its state.
        session = sessions.setdefault(id(device), device if isinstance(device, Session) else Session(device))
        place = Place(
            layer.name,
            layer.module,
            session,
            initialize=merged.pop("initialize"),
            digital_fraction=merged.pop("digital_fraction"),
            options=merged,
            options_given=bool(options or own),
        )
        _check_options(place)
        places.append(place)
    _check_shared(places)
    return places


def _make_device(what: What, layer: AttachableLayer) -> Device:
    if isinstance(what, Device) and not isinstance(what, type):
        return what
    device = what(*layer_width(layer.module))
    if not isinstance(device, Device):
        raise ConfigurationError(
            f"the function that makes a device for layer {layer.name!r} made a {type(device).__name__}"
        )
    return device


def _check_width(layer: AttachableLayer, device: Device) -> None:
    if isinstance(layer.module, nn.Conv2d) and layer.module.groups != 1:
        raise ConfigurationError(
            f"layer {layer.name!r} is a convolution in {layer.module.groups} groups; "
            f"a device computes one of 1 group only"
        )
    spec = device.spec
    width, height = layer_width(layer.module)
    if (spec.in_features, spec.out_features) != (width, height):
        raise ConfigurationError(
            f"layer {layer.name!r} maps {width} to {height} features, "
            f"but device {spec.name!r} maps {spec.in_features} to {spec.out_features}"
        )


def _check_options(place: Place) -> None:
    fraction = place.digital_fraction
    if place.initialize not in ("device", "fit"):
        raise ConfigurationError(f"initialize must be 'device' or 'fit', not {place.initialize!r}")
    if isinstance(fraction, bool) or not (isinstance(fraction, int | float) and 0 <= fraction < 1):
        raise ConfigurationError(f"digital_fraction must be at least 0 and below 1, not {fraction!r}")
    if isinstance(place.old, BlackBoxLinear):
        check_reattachment(place, place.old)
        if is_on(place.old, place.session) and not place.options_given:
            return  # the layer stays as it is
    elif place.old.weight.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"layer {place.name!r} is {place.old.weight.dtype}; a device layer is float32 or float64"
        )
    spec = place.session.spec
    if place.initialize == "fit" and not spec.linear:
        raise ConfigurationError(f"{spec.name!r} is not linear, and cannot be fitted to weights")
    method = {name: value for name, value in place.options.items() if name not in ("gain", "encoding")}
    choose_encoding(spec, place.options.get("encoding", "auto"))
    choose_method(place.session, **method)


def _check_shared(places: Sequence[Place]) -> None:
    for kind in ("estimator", "surrogate"):
        objects = [id(place.options[kind]) for place in places if not isinstance(place.options.get(kind), str | None)]
        if len(set(objects)) < len(objects):
            raise ConfigurationError(
                f"one {kind} cannot serve several layers; give its name, and each gets its own, or use per_layer"
            )
