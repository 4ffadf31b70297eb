"""Add adapters to a transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices import derive_generator, derive_seed
from .architectures import TransformerLayer, find_layers
from .config import PROJECTIONS, SHORTCUTS, AdapterConfig, Resolved
from .random_state import isolated_random_state
from .shortcuts import Projector, Shortcuts
from .units import LoraUnit, ShortcutUnit, Unit

__all__ = ["AdaptedModel", "adapt"]

_HEADS = ("score", "classifier")  # names of a classifier's new, untrained head in transformers


class AdaptedModel:
    """Hold a transformer and its adapters.

    Attributes:
        model: the transformer; only the adapters and the head of a classifier are trained.
        config: configuration of the adapters.
        units: adapters, layer by layer.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig, units: list[Unit]) -> None:
        self.model, self.config, self.units = model, config, units

    def unit(self, key: str) -> Unit:
        """Return the adapter with a key such as ``model_layer_0.q_proj``.

        Raises:
            ConfigurationError: the model has no adapter with this key.
        """
        for unit in self.units:
            if unit.key == key:
                return unit
        raise ConfigurationError(f"the model has no adapter {key!r}; it has {', '.join(u.key for u in self.units)}")

    def set_enabled(self, enabled: Mapping[str, bool] | bool) -> None:
        """Switch adapters on or off: all together with a bool, or each by its key."""
        for unit in self.units:
            value = enabled if isinstance(enabled, bool) else enabled[unit.key]
            if unit.enabled != value:
                unit.enabled = value

    def trained_state(self) -> dict[str, Tensor]:
        """Return the parameters of all adapters, on or off, and of a classifier's head, by name in the model."""
        of_adapters = {id(parameter) for unit in self.units for parameter in unit.parameters()}
        return {
            name: parameter.detach()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad or id(parameter) in of_adapters
        }

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `trained_state` returned.

        Raises:
            ConfigurationError: the state belongs to a model with other adapters.
        """
        own = self.trained_state()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ConfigurationError("the saved adapters do not match the adapters of this model")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def parameter_counts(self) -> tuple[int, int]:
        """Count the parameters that are trained now, and all parameters."""
        parameters = list(self.model.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return trained, sum(parameter.numel() for parameter in parameters)


def adapt(model: nn.Module, config: AdapterConfig | Mapping[str, Any] | None = None, *, seed: int = 0) -> AdaptedModel:
    """Add LoRA to a transformer's projections and low-rank shortcuts to its skip connections, in place.

    All other parameters are frozen, except the new head of a classifier. Every B is zero, so that the model computes
    the same outputs until it is trained. Zhang et al., arXiv 2406.14956.

    Args:
        model: model of transformers with an architecture in `ARCHITECTURES` and any head.
        config: adapters, as an `AdapterConfig` or its tables; all adapters with rank 8 unless given.
        seed: seed of every adapter's A.

    Raises:
        ConfigurationError: peft is not installed, the architecture is unknown, the model has adapters already, or the
            configuration names adapters that the model cannot have.
    """
    if not isinstance(config, AdapterConfig):
        config = AdapterConfig.parse(config or {})
    layers = find_layers(model)
    _check(model, layers, config)
    model.requires_grad_(False)
    loras = _inject_lora(model, layers, config, seed)
    units: list[Unit] = []
    before: Shortcuts | None = None
    for layer in layers:
        units += [LoraUnit(layer.index, name, lora, importance) for name, lora, importance in loras[layer.index]]
        projectors = {}
        for name in SHORTCUTS:
            options = config.resolve(layer.index, name)
            if options.enabled and not (name == "shortcut2" and layer.index == 0):
                generator = derive_generator(seed, "adapters", layer.index, name)
                projectors[name] = Projector(layer.width, options, generator).to(_first_parameter(layer))
        # A layer without shortcuts needs it, too: shortcut2 of the next layer starts there.
        before = Shortcuts(layer, projectors, before)
        layer.module.add_module("shortcuts", before)
        units += [ShortcutUnit(layer.index, name, projector) for name, projector in projectors.items()]
    for name in _HEADS:
        head = getattr(model, name, None)
        if isinstance(head, nn.Module):
            head.requires_grad_(True)
    return AdaptedModel(model, config, units)


def _check(model: nn.Module, layers: list[TransformerLayer], config: AdapterConfig) -> None:
    if any("shortcuts" in dict(layer.module.named_children()) for layer in layers):
        raise ConfigurationError("the model has adapters already; adapt a new model")
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ConfigurationError("shortcuts do not work with gradient checkpointing; switch it off for this model")
    if getattr(getattr(model, "config", None), "layerdrop", 0):
        raise ConfigurationError("shortcuts do not work where layers are dropped; set layerdrop to 0")
    available = {*layers[0].projections, *SHORTCUTS}
    for number, name in sorted(config.named(), key=str):
        where = "all_layers" if number is None else f"model_layer_{number}"
        if number is not None and number >= len(layers):
            raise ConfigurationError(f"{where} does not exist: the model has {len(layers)} layers, counted from 0")
        if name not in available:
            raise ConfigurationError(f"{where}.{name} does not exist: the model has {', '.join(sorted(available))}")
        if name == "shortcut2" and number == 0 and config.resolve(0, name).enabled:
            table = config.layers[0].shortcut2
            if table is not None and table.disable_projector is False:
                raise ConfigurationError("model_layer_0.shortcut2 does not exist: no layer comes before layer 0")


def _inject_lora(
    model: nn.Module, layers: list[TransformerLayer], config: AdapterConfig, seed: int
) -> dict[int, list[tuple[str, Any, float]]]:
    """Inject LoRA with peft, and return name, module and importance of each adapter by layer."""
    peft = require("peft", "LoRA", extra="lowrank")
    targets: dict[str, tuple[int, str, Resolved]] = {}
    for layer in layers:
        for name in PROJECTIONS:
            options = config.resolve(layer.index, name)
            if name in layer.projections and options.enabled:
                targets[layer.projections[name]] = layer.index, name, options
    injected: dict[int, list[tuple[str, Any, float]]] = {layer.index: [] for layer in layers}
    if not targets:
        return injected
    lora = peft.LoraConfig(
        target_modules=list(targets),
        rank_pattern={f"^{path}$": options.rank for path, (_, _, options) in targets.items()},
        alpha_pattern={f"^{path}$": options.alpha for path, (_, _, options) in targets.items()},
    )
    with isolated_random_state(derive_seed(seed, "adapters", "lora")):
        peft.inject_adapter_in_model(lora, model)
    for path, (index, name, options) in targets.items():
        module: Any = model.get_submodule(path)
        module.lora_dropout["default"] = nn.Dropout(options.dropout)
        injected[index].append((name, module, options.importance))
    return injected


def _first_parameter(layer: TransformerLayer) -> Tensor:
    return next(layer.module.parameters())
