"""Putting devices into an existing model, and taking them out again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod, sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import Device, Session, derive_seed
from .conv import BlackBoxConv2d
from .layer import BlackBoxLinear, check_layer

__all__ = ["ATTACH_OPTIONS", "attach", "detach", "layer_width"]

ATTACH_OPTIONS = ("initialize", "digital_fraction")
"""Options of a layer that are about the layer that it replaces."""

Where = str | type[nn.Module]
"""A layer's name, a pattern of names such as ``"blocks.*.fc?"``, or a type of layers."""

What = Device | Callable[[int, int], Device]
"""A device, or what makes one for a layer of this many inputs and outputs."""


# A mapping's keys are invariant for the type checker: each way to write one is named.
Layers = Mapping[str, What] | Mapping[type[nn.Module], What] | Mapping[Where, What]
Options = (
    Mapping[str, Mapping[str, Any]] | Mapping[type[nn.Module], Mapping[str, Any]] | Mapping[Where, Mapping[str, Any]]
)


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
    """Replace linear layers and 2-d convolutions of a model by devices, in place; `detach` undoes it.

    Each device layer starts with the bias of the layer that it replaces, and with outputs as strong as that
    layer's. All is checked before the first device is touched.

    Args:
        model: any module that contains the layers.
        layers: the device for each layer, by the layer's name as in ``model.named_modules()``, by a pattern that names
            match (``"encoder.*"``; a star also matches dots), or by type (``nn.Linear``, ``nn.Conv2d``). A name
            goes before a pattern, and a pattern before a type. A device at several places is one chip that takes
            turns; a function of (in_features, out_features) makes each layer a device of its own.
        exclude: names, patterns and types of layers that stay as they are.
        per_layer: options for layers that match, in place of those for all; later entries go before earlier ones.
        initialize: start the controls where the ``"device"`` suggests, or ``"fit"`` them to the weights that the
            layer has: what is left of them is in the new layer's ``fit_residual``.
        digital_fraction: share of each layer's weights, the largest, that stay digital beside the device and are
            trained with it; 0 for none. With ``initialize="fit"`` the device starts from the others: the sparse +
            device layer of arXiv 2509.15113.
        **options: for every `BlackBoxLinear`, such as ``method="paper"`` and ``samples=10``.

    Returns:
        The same model; a new one only where the model is itself the layer, named ``""``.

    Raises:
        ConfigurationError: a name or pattern without a layer, a device of another width, or options that do not suit.
    """
    seed = options.pop("seed", 0)
    common = {"initialize": initialize, "digital_fraction": digital_fraction, **options}
    places = _places(model, layers, tuple(exclude))
    for where in per_layer or {}:
        if not any(_any_matches(where, place.aliases, place.old) for place in places):
            raise ConfigurationError(
                f"per_layer has options for {_shown(where)}, which is none of the layers to attach"
            )
    sessions: dict[int, Session] = {}
    for place in places:
        place.options = dict(common)
        for where, its_own in (per_layer or {}).items():
            if _any_matches(where, place.aliases, place.old):
                place.options |= its_own
        _check_width(place)
        # A chip at two places is still one chip: one guard has to know what it holds.
        guard = place.device if isinstance(place.device, Session) else Session(place.device)
        place.session = sessions.setdefault(id(place.device), guard)
        _check_options(place)
    _check_shared(places)
    for number, place in enumerate(places):
        # Layers of equal size must not start alike.
        place.options.setdefault("seed", derive_seed(seed, place.name) if number else seed)
        new = _replacement(place)
        if not place.name:
            return new
        _put(model, place.old, new)
    return model


def detach(model: nn.Module, layers: Iterable[Where] | None = None, *, repeats: int = 4) -> nn.Module:
    """Replace device layers by digital ones that compute the same, in place: the reverse of `attach`.

    The transfer matrix is measured and, with gain and digital part, becomes the new layer's weight. The devices
    stay open.

    Args:
        model: any module that contains device layers.
        layers: names, patterns or types of those to replace; None for all.
        repeats: times that each measuring vector is sent: the error of the weights falls with the root of it.

    Returns:
        The same model; a new one only where the model is itself the layer.

    Raises:
        ConfigurationError: a name without a device layer, or a device that is not linear; nothing was replaced.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, BlackBoxLinear)}
    if layers is not None:
        wanted = tuple(layers)
        for where in wanted:
            if not any(_matches(where, name, module) for name, module in found.items()):
                raise ConfigurationError(
                    f"the model has no device layer {_shown(where)}; it has {_listed(list(found)) or 'none at all'}"
                )
        found = {name: module for name, module in found.items() if any(_matches(w, name, module) for w in wanted)}
    for name, module in found.items():
        if not module.session.spec.linear:
            raise ConfigurationError(
                f"layer {name!r} is on {module.session.spec.name!r}, which is not linear: no weight can be written back"
            )
    # All are measured before the first is replaced: a chip that fails leaves the model as it is.
    digital = {name: module.to_digital(repeats) for name, module in found.items()}
    for name, module in found.items():
        if not name:
            return digital[name]
        _put(model, module, digital[name])
    return model


@dataclass(slots=True)
class _Place:
    """One layer that is to be replaced, by what, and how."""

    name: str
    aliases: tuple[str, ...]
    old: nn.Linear | nn.Conv2d
    device: Device
    options: dict[str, Any]
    session: Session | None = None


def _places(model: nn.Module, layers: Layers, exclude: Sequence[Where]) -> list[_Place]:
    names = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in (nn.Linear, nn.Conv2d)
    ]
    chosen: dict[Where, What] = dict(layers.items())
    ranked = sorted(chosen, key=_rank)  # stable: among equals, the first in the mapping
    used: set[Where] = set()
    places: list[_Place] = []
    for module in dict.fromkeys(module for _, module in names):
        # Tied layers stand under several names, are meant by any of them, and are replaced under all.
        aliases = tuple(name for name, other in names if other is module)
        matching = [where for where in ranked if _any_matches(where, aliases, module)]
        if not matching or any(_any_matches(where, aliases, module) for where in exclude):
            continue
        used.update(matching)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        what = chosen[matching[0]]
        made = what if isinstance(what, Device) and not isinstance(what, type) else _made(what, aliases[0], module)
        places.append(_Place(aliases[0], aliases, module, made, {}))
    for where in chosen:
        if where not in used:
            raise ConfigurationError(_nothing_there(where, [name for name, _ in names], exclude))
    # In the order in which they were asked for, so that one layer more does not change the others' seeds.

    def asked(place: _Place) -> int:
        return next(i for i, where in enumerate(chosen) if _any_matches(where, place.aliases, place.old))

    return sorted(places, key=asked)


def _made(what: Callable[[int, int], Device], name: str, module: nn.Module) -> Device:
    device = what(*layer_width(module))
    if not isinstance(device, Device):
        raise ConfigurationError(f"what is to make a device for layer {name!r} made a {type(device).__name__}")
    return device


def _rank(where: Where) -> int:
    if isinstance(where, type):
        return 2
    return 1 if _is_pattern(where) else 0


def _is_pattern(where: str) -> bool:
    return any(mark in where for mark in "*?[")


def _matches(where: Where, name: str, module: nn.Module) -> bool:
    if isinstance(where, type):
        return isinstance(module, where)
    return fnmatchcase(name, where) if _is_pattern(where) else name == where


def _any_matches(where: Where, aliases: Sequence[str], module: nn.Module) -> bool:
    return any(_matches(where, name, module) for name in aliases)


def layer_width(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of the device that a linear layer or a convolution takes."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels * prod(module.kernel_size), module.out_channels
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def _check_width(place: _Place) -> None:
    if isinstance(place.old, nn.Conv2d) and place.old.groups != 1:
        raise ConfigurationError(
            f"layer {place.name!r} is a convolution in {place.old.groups} groups; a device computes one of 1 group only"
        )
    spec = place.device.spec
    width, height = layer_width(place.old)
    if (spec.in_features, spec.out_features) != (width, height):
        raise ConfigurationError(
            f"layer {place.name!r} maps {width} to {height} features, "
            f"but device {spec.name!r} maps {spec.in_features} to {spec.out_features}"
        )


def _check_options(place: _Place) -> None:
    options = dict(place.options)
    initialize, fraction = options.pop("initialize"), options.pop("digital_fraction")
    if initialize not in ("device", "fit"):
        raise ConfigurationError(f"initialize must be 'device' or 'fit', not {initialize!r}")
    if isinstance(fraction, bool) or not (isinstance(fraction, int | float) and 0 <= fraction < 1):
        raise ConfigurationError(f"digital_fraction must be at least 0 and below 1, not {fraction!r}")
    if place.old.weight.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"layer {place.name!r} is {place.old.weight.dtype}; a device layer is float32 or float64"
        )
    assert place.session is not None
    if initialize == "fit" and not place.session.spec.linear:
        raise ConfigurationError(f"{place.session.spec.name!r} is not linear, and cannot be fitted to weights")
    check_layer(place.session, **options)


def _check_shared(places: Sequence[_Place]) -> None:
    for what in ("estimator", "surrogate"):
        objects = [id(place.options[what]) for place in places if not isinstance(place.options.get(what), str | None)]
        if len(set(objects)) < len(objects):
            raise ConfigurationError(
                f"one {what} cannot serve several layers; give its name, and each gets its own, or use per_layer"
            )


def _replacement(place: _Place) -> BlackBoxLinear:
    old, options = place.old, dict(place.options)
    initialize, fraction = options.pop("initialize"), options.pop("digital_fraction")
    weight = old.weight.detach().flatten(1)
    digital = _largest(weight, fraction) if fraction else None
    options |= {"bias": old.bias is not None, "dtype": old.weight.dtype, "digital": digital}
    assert place.session is not None
    new: BlackBoxLinear
    if isinstance(old, nn.Conv2d):
        for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
            options[name] = getattr(old, name)
        new = BlackBoxConv2d(place.session, **options)
    else:
        new = BlackBoxLinear(place.session, **options)
    new = new.to(old.weight.device)
    _take_over(old, new, weight if digital is None else weight - digital)
    if initialize == "fit":
        new.fit(weight)
    return new


def _largest(weight: Tensor, fraction: float) -> Tensor:
    count = max(1, round(fraction * weight.numel()))
    places = weight.abs().flatten().topk(count).indices
    kept = torch.zeros_like(weight).flatten()
    kept[places] = weight.flatten()[places]
    return kept.view_as(weight)


def _take_over(old: nn.Linear | nn.Conv2d, new: BlackBoxLinear, weight: Tensor) -> None:
    new.train(old.training)
    new.controls.requires_grad_(old.weight.requires_grad)
    with torch.no_grad():
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias).requires_grad_(old.bias.requires_grad)
        if new.gain is not None:
            # From nn.Linear's usual strength for inputs of +-1 to that of these very weights.
            new.gain.mul_(weight.norm() / sqrt(len(weight)) * sqrt(3))
            new.gain.requires_grad_(old.weight.requires_grad)
        if new.digital is not None:
            new.digital.requires_grad_(old.weight.requires_grad)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            path, _, child = name.rpartition(".")
            parent = model.get_submodule(path)
            setattr(parent, child, new)
            if isinstance(parent, nn.TransformerEncoderLayer):
                # Its fast path for inference would reach for weights that a device does not have.
                device = any(isinstance(part, BlackBoxLinear) for part in parent.children())
                known = {nn.functional.relu: 1, nn.functional.gelu: 2}
                parent.activation_relu_or_gelu = 0 if device else known.get(parent.activation, 0)


def _nothing_there(where: Where, names: Sequence[str], exclude: Sequence[Where]) -> str:
    but = " that is not excluded" if exclude else ""
    if isinstance(where, type):
        return f"the model has no layer of type {where.__name__}{but}; devices replace nn.Linear and nn.Conv2d"
    near = difflib.get_close_matches(where, names, n=1, cutoff=0.6)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"the model has no nn.Linear named {where!r}{but}, nor a nn.Conv2d; "
        f"{guess}it has {_listed(names) or 'none at all'}"
    )


def _shown(where: Where) -> str:
    return where.__name__ if isinstance(where, type) else repr(where)


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
