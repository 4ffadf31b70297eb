"""Give access to single adapters: their switch, importance, rank, factors and cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..nn.layer import BlackBoxLinear
from .config import Family, family_of
from .shortcuts import Projector

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

__all__ = ["LoraUnit", "ShortcutUnit", "Unit", "units_of"]

_ADAPTER = "default"  # name of the adapter in peft


class Unit:
    """Give access to one adapter of one layer.

    Attributes:
        layer: number of the transformer layer, from 0.
        name: one of `PROJECTIONS` or `SHORTCUTS`.
    """

    def __init__(self, layer: int, name: str) -> None:
        self.layer, self.name = layer, name

    @property
    def key(self) -> str:
        """Return the name in configurations and scores, such as ``model_layer_0.q_proj``."""
        return f"model_layer_{self.layer}.{self.name}"

    @property
    def family(self) -> Family:
        """Return the family, ``"lora"`` or ``"shortcut"``."""
        return family_of(self.name)

    @property
    def factors(self) -> tuple[nn.Module, nn.Module]:
        """Return the modules A and B."""
        raise NotImplementedError

    @property
    def enabled(self) -> bool:
        """Report whether the adapter is on; an adapter that is off has no gradient and does not query a device."""
        raise NotImplementedError

    @enabled.setter
    def enabled(self, value: bool) -> None:
        raise NotImplementedError

    @property
    def importance(self) -> float:
        """Return the importance, a factor of the adapter's output."""
        raise NotImplementedError

    @importance.setter
    def importance(self, value: float) -> None:
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """Return the rank r."""
        raise NotImplementedError

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Return A and B, or the controls of a factor on a device."""
        first, second = (_weight(factor) for factor in self.factors)
        return first, second

    @property
    def devices(self) -> list[BlackBoxLinear]:
        """Return the device layers among the factors."""
        return [layer for factor in self.factors for layer in factor.modules() if isinstance(layer, BlackBoxLinear)]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trained parameters of both factors."""
        for factor in self.factors:
            yield from factor.parameters()

    @property
    def cost(self) -> int:
        """Count the trained numbers of both factors."""
        return sum(parameter.numel() for parameter in self.parameters())

    def __repr__(self) -> str:
        return f"{self.key} (rank {self.rank}, {'on' if self.enabled else 'off'})"


class LoraUnit(Unit):
    """Give access to the LoRA of a projection, which peft has injected.

    Args:
        layer: number of the transformer layer, from 0.
        name: one of `PROJECTIONS`.
        module: module that peft has injected.
        importance: initial importance.
    """

    def __init__(self, layer: int, name: str, module: LoraLayer, importance: float = 1.0) -> None:
        super().__init__(layer, name)
        self.module = module
        self.importance = importance

    @property
    def factors(self) -> tuple[nn.Module, nn.Module]:
        """Return the modules A and B."""
        return self.module.lora_A[_ADAPTER], self.module.lora_B[_ADAPTER]

    @property
    def enabled(self) -> bool:
        """Report whether the adapter is on."""
        return not self.module.disable_adapters

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.module.enable_adapters(value)
        if not value:
            _drop_gradients(self)

    @property
    def importance(self) -> float:
        """Return the importance, a factor of the adapter's output."""
        return self._importance

    @importance.setter
    def importance(self, value: float) -> None:
        self._importance = value
        self.module.scaling[_ADAPTER] = value * self.module.lora_alpha[_ADAPTER] / self.module.r[_ADAPTER]

    @property
    def rank(self) -> int:
        """Return the rank r."""
        rank: int = self.module.r[_ADAPTER]
        return rank


class ShortcutUnit(Unit):
    """Give access to a low-rank shortcut.

    Args:
        layer: number of the transformer layer, from 0.
        name: one of `SHORTCUTS`.
        module: projector of the shortcut.
    """

    def __init__(self, layer: int, name: str, module: Projector) -> None:
        super().__init__(layer, name)
        self.module = module

    @property
    def factors(self) -> tuple[nn.Module, nn.Module]:
        """Return the modules A and B."""
        return self.module.A, self.module.B

    @property
    def enabled(self) -> bool:
        """Report whether the adapter is on."""
        return self.module.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.module.enabled = value
        self.module.requires_grad_(value)
        if not value:
            _drop_gradients(self)

    @property
    def importance(self) -> float:
        """Return the importance, a factor of the adapter's output."""
        return self.module.importance

    @importance.setter
    def importance(self, value: float) -> None:
        self.module.importance = value

    @property
    def rank(self) -> int:
        """Return the rank r."""
        return self.module.rank


def units_of(units: Sequence[Unit], *, enabled: bool | None = None, family: Family | None = None) -> list[Unit]:
    """Select adapters by family, and by whether they are on; None selects both."""
    return [
        unit
        for unit in units
        if (enabled is None or unit.enabled == enabled) and (family is None or unit.family == family)
    ]


def _weight(factor: nn.Module) -> Tensor:
    for module in factor.modules():
        if isinstance(module, BlackBoxLinear):
            return module.controls
    weight = factor.weight
    assert isinstance(weight, Tensor)
    return weight


def _drop_gradients(unit: Unit) -> None:
    # Without a gradient, an optimizer changes neither the weights nor their state.
    for parameter in unit.parameters():
        parameter.grad = None
