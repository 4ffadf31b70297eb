"""Putting adapters into a transformer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices import derive_generator, derive_seed
from .architectures import TransformerLayer, find_layers
from .config import PROJECTIONS, SHORTCUTS, AdapterConfig, Resolved
from .shortcuts import Projector, Shortcuts
from .units import LoraUnit, ShortcutUnit, Unit

__all__ = ["AdaptedModel", "adapt", "undisturbed_random_state"]

_HEADS = ("score", "classifier")
"""What transformers calls the new, untrained head of a classifier."""


class AdaptedModel:
    """A transformer with adapters in it.

    Attributes:
        model: the transformer itself, of its own class; all that is trained in it are the adapters, and the head of a
            classifier.
        config: what it was adapted by.
        units: its adapters, layer by layer.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig, units: list[Unit]) -> None:
        self.model, self.config, self.units = model, config, units

    def unit(self, key: str) -> Unit:
        """The adapter of this key, such as ``model_layer_0.q_proj``.

        Raises:
            ConfigurationError: there is none.
        """
        for unit in self.units:
            if unit.key == key:
                return unit
        raise ConfigurationError(f"the model has no adapter {key!r}; it has {', '.join(u.key for u in self.units)}")

    def set_enabled(self, enabled: Mapping[str, bool] | bool) -> None:
        """Switch adapters on and off, all alike or by key."""
        for unit in self.units:
            value = enabled if isinstance(enabled, bool) else enabled[unit.key]
            if unit.enabled != value:
                unit.enabled = value

    def trained_state(self) -> dict[str, Tensor]:
        """All that is trained, switched off or not: adapters and a classifier's head, by name in the model."""
        kept = {id(parameter) for unit in self.units for parameter in unit.parameters()}
        return {
            name: parameter.detach()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad or id(parameter) in kept
        }

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trained_state` returned.

        Raises:
            ConfigurationError: it is of a model with other adapters.
        """
        own = self.trained_state()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ConfigurationError("the saved adapters are not those that this model has")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers that are trained at present, and all."""
        parameters = list(self.model.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return trained, sum(parameter.numel() for parameter in parameters)


def adapt(model: nn.Module, config: AdapterConfig | Mapping[str, Any] | None = None, *, seed: int = 0) -> AdaptedModel:
    """Put LoRA around a transformer's projections and low-rank shortcuts beside its skips, in place.

    All else is frozen, but for the new head of a classifier. The model computes what it did until it is trained:
    every B is zero. Zhang et al., arXiv 2406.14956.

    Args:
        model: of transformers, of one of `ARCHITECTURES`, with any head.
        config: which adapters, as an `AdapterConfig` or its tables; all of rank 8 unless given.
        seed: of the adapters' A.

    Raises:
        ConfigurationError: peft is not installed, the model's architecture is not known, it has adapters already, or
            the configuration speaks of adapters that it has no place for.
    """
    if not isinstance(config, AdapterConfig):
        config = AdapterConfig.parse(config or {})
    layers = find_layers(model)
    _check(model, layers, config)
    model.requires_grad_(False)
    loras = _inject(model, layers, config, seed)
    units: list[Unit] = []
    before: Shortcuts | None = None
    for layer in layers:
        units += [LoraUnit(layer.index, name, lora, importance) for name, lora, importance in loras[layer.index]]
        projectors = {}
        for name in SHORTCUTS:
            options = config.resolve(layer.index, name)
            if options.enabled and not (name == "shortcut2" and layer.index == 0):
                generator = derive_generator(seed, "adapters", layer.index, name)
                projectors[name] = Projector(layer.width, options, generator).to(_like(layer))
        # Also where a layer has none itself: the next one's shortcut2 starts here.
        before = Shortcuts(layer, projectors, before)
        layer.module.add_module("shortcuts", before)
        units += [ShortcutUnit(layer.index, name, projector) for name, projector in projectors.items()]
    for name in _HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            head.requires_grad_(True)
    return AdaptedModel(model, config, units)


@contextmanager
def undisturbed_random_state(seed: int | None = None) -> Iterator[None]:
    """Give libraries that draw from the global generators some to draw from, and put everything back afterwards.

    Args:
        seed: of what they draw; None lets them go on from where the generators are.
    """
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _check(model: nn.Module, layers: list[TransformerLayer], config: AdapterConfig) -> None:
    if any("shortcuts" in dict(layer.module.named_children()) for layer in layers):
        raise ConfigurationError("the model has adapters already; adapt a fresh one")
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ConfigurationError("shortcuts do not work with gradient checkpointing; switch it off for this model")
    if getattr(getattr(model, "config", None), "layerdrop", 0):
        raise ConfigurationError("shortcuts do not work where layers are dropped; set layerdrop to 0")
    there = {*layers[0].projections, *SHORTCUTS}
    for number, name in sorted(config.named(), key=str):
        where = "all_layers" if number is None else f"model_layer_{number}"
        if number is not None and number >= len(layers):
            raise ConfigurationError(f"{where} is not there: the model has {len(layers)} layers, counted from 0")
        if name not in there:
            raise ConfigurationError(f"{where}.{name} is not there: the model has {', '.join(sorted(there))}")
        if name == "shortcut2" and number == 0 and config.resolve(0, name).enabled:
            table = config.layers[0].shortcut2
            if table is not None and table.disable_projector is False:
                raise ConfigurationError("model_layer_0.shortcut2 is not there: no layer comes before layer 0")


def _inject(
    model: nn.Module, layers: list[TransformerLayer], config: AdapterConfig, seed: int
) -> dict[int, list[tuple[str, Any, float]]]:
    """Let peft put LoRA in; returns name, module and importance by layer."""
    peft = require("peft", "LoRA", extra="lowrank")
    wanted: dict[str, tuple[int, str, Resolved]] = {}
    for layer in layers:
        for name in PROJECTIONS:
            options = config.resolve(layer.index, name)
            if name in layer.projections and options.enabled:
                wanted[layer.projections[name]] = layer.index, name, options
    found: dict[int, list[tuple[str, Any, float]]] = {layer.index: [] for layer in layers}
    if not wanted:
        return found
    lora = peft.LoraConfig(
        target_modules=list(wanted),
        rank_pattern={f"^{path}$": options.rank for path, (_, _, options) in wanted.items()},
        alpha_pattern={f"^{path}$": options.alpha for path, (_, _, options) in wanted.items()},
    )
    with undisturbed_random_state(derive_seed(seed, "adapters", "lora")):
        peft.inject_adapter_in_model(lora, model)
    for path, (index, name, options) in wanted.items():
        module: Any = model.get_submodule(path)
        module.lora_dropout["default"] = nn.Dropout(options.dropout)
        found[index].append((name, module, options.importance))
    return found


def _like(layer: TransformerLayer) -> Tensor:
    return next(layer.module.parameters())
