"""Replace layers of an existing model by device layers, and replace them back."""

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
"""A device, or a function of (in_features, out_features) that makes a device for a layer."""

# Keys are of type Where, but Any is declared: type checkers treat keys as invariant, and refuse {nn.Linear: device}.
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
    """Replace linear layers and 2-d convolutions of a model by device layers, in place; `detach` reverses this.

    Each device layer starts with the bias and the output strength of the replaced layer. All arguments are checked
    before the first device is operated.

    A layer that is on a device already may be attached again, for example when a notebook cell runs twice. On the same
    device the layer is kept; if options are given, they choose a new estimator, surrogate and encoding. On another
    device of the same size a new layer replaces it and keeps bias and digital weights; on a device of the same kind it
    also keeps controls and gain. To keep trained weights on a device of another kind, call `detach` first.

    Args:
        model: any module that contains the layers.
        layers: device for each layer, with the layer's name as in ``model.named_modules()`` as key, or a pattern of
            names (``"encoder.*"``; a star also matches dots), or a type (``nn.Linear``, ``nn.Conv2d``). If several keys
            match, a name overrides a pattern, and a pattern overrides a type. If several layers get the same device,
            they share one chip; a function of (in_features, out_features) makes a separate device for each layer.
        exclude: names, patterns and types of layers that are not replaced.
        per_layer: options for matching layers, which override the common options; later entries override earlier ones.
        initialize: ``"device"`` draws the first controls from the initial range of the device; ``"fit"`` fits them to
            the layer's weights, and the error of the fit is in the new layer's ``fit_residual``.
        digital_fraction: share of each layer's weights that stay digital and are trained together with the device; the
            largest weights are chosen; 0 for none. With ``initialize="fit"`` the device is fitted to the other weights:
            the sparse + device layer of arXiv 2509.15113.
        **options: options of every `BlackBoxLinear`, such as ``method="paper"`` and ``samples=10``.

    Returns:
        The same model, or a new layer if the model is itself the replaced layer, with the name ``""``.

    Raises:
        ConfigurationError: a key matches no layer, a device has the wrong size, or an option is not valid.
    """
    for place in _plan(model, layers, tuple(exclude), per_layer or {}, initialize, digital_fraction, options):
        old = place.old
        new = reattach(place, old) if isinstance(old, BlackBoxLinear) else replace_digital(place, old)
        if not place.name:
            return new
        put_layer(model, old, new)
    return model


def detach(model: nn.Module, layers: Iterable[Where] | None = None, *, repeats: int = 4) -> nn.Module:
    """Replace device layers by digital layers that compute the same, in place: the reverse of `attach`.

    The weight of a new layer is the measured transfer matrix times the gain, plus the digital weights. The devices stay
    open.

    Args:
        model: any module that contains device layers.
        layers: names, patterns or types of the layers to replace; None for all.
        repeats: number of times that each probe is sent; the error of the weights falls as 1 / sqrt(repeats).

    Returns:
        The same model, or a new layer if the model is itself the replaced layer.

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
                f"layer {name!r} is on {module.session.spec.name!r}, which is not linear, so it has no weights to "
                f"measure; leave this layer out"
            )
    # All layers are measured before the first is replaced, so that the model is not changed if a chip fails.
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
            raise ConfigurationError(
                f"per_layer has options for {shown(where)}, but no layer to attach matches it; correct the key"
            )
    sessions: dict[int, Session] = {}
    for layer, device in selected:
        if isinstance(layer.module, BlackBoxLinear) and is_on(layer.module, device):
            sessions[id(device)] = layer.module.session
    seed = options.get("seed", 0)
    places: list[Place] = []
    for number, (layer, device) in enumerate(selected):
        own = {name: value for key, its in per_layer.items() if layer.matches(key) for name, value in its.items()}
        merged = {"initialize": initialize, "digital_fraction": digital_fraction, **options, **own}
        # Layers of equal size must not start with equal controls.
        merged["seed"] = own.get("seed", derive_seed(seed, layer.name) if number else seed)
        _check_width(layer, device)
        # Layers that share a chip must share its session, which stores the state of the chip.
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
    if not callable(what):
        advice = f"a device, such as al.make_device({what!r}, ...)," if isinstance(what, str) else "a device,"
        raise ConfigurationError(f"layer {layer.name!r} is given {what!r}; give {advice} or a function that makes one")
    device = what(*layer_width(layer.module))
    if not isinstance(device, Device):
        raise ConfigurationError(
            f"the function that makes a device for layer {layer.name!r} returned a {type(device).__name__}; "
            f"it must return a device"
        )
    return device


def _check_width(layer: AttachableLayer, device: Device) -> None:
    if isinstance(layer.module, nn.Conv2d) and layer.module.groups != 1:
        raise ConfigurationError(
            f"layer {layer.name!r} is a convolution in {layer.module.groups} groups; "
            f"a device can compute only convolutions with 1 group; exclude this layer"
        )
    spec = device.spec
    width, height = layer_width(layer.module)
    if (spec.in_features, spec.out_features) != (width, height):
        raise ConfigurationError(
            f"layer {layer.name!r} maps {width} to {height} features, "
            f"but device {spec.name!r} maps {spec.in_features} to {spec.out_features}; both must have the same sizes"
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
            return  # the layer is kept
    elif place.old.weight.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"layer {place.name!r} is {place.old.weight.dtype}, but a device layer must be float32 or float64; "
            f"convert the layer first"
        )
    spec = place.session.spec
    if place.initialize == "fit" and not spec.linear:
        raise ConfigurationError(f"{spec.name!r} is not linear, so it cannot be fitted to weights; use 'device'")
    method = {name: value for name, value in place.options.items() if name not in ("gain", "encoding")}
    choose_encoding(spec, place.options.get("encoding", "auto"))
    choose_method(place.session, **method)


def _check_shared(places: Sequence[Place]) -> None:
    for kind in ("estimator", "surrogate"):
        objects = [id(place.options[kind]) for place in places if not isinstance(place.options.get(kind), str | None)]
        if len(set(objects)) < len(objects):
            raise ConfigurationError(
                f"several layers cannot share one {kind} object; give its name, so that each layer gets a new one, "
                f"or use per_layer"
            )
