"""Adapters one by one: what is ranked, switched on and off, and paid for."""

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

_ADAPTER = "default"  # what peft calls the only one that there is


class Unit:
    """One adapter of one layer.

    Attributes:
        layer: which transformer layer, from 0.
        name: one of `PROJECTIONS` or `SHORTCUTS`.
    """

    def __init__(self, layer: int, name: str) -> None:
        self.layer, self.name = layer, name

    @property
    def key(self) -> str:
        """As configurations and scores name it: ``model_layer_0.q_proj``."""
        return f"model_layer_{self.layer}.{self.name}"

    @property
    def family(self) -> Family:
        """LoRA or shortcut."""
        return family_of(self.name)

    @property
    def factors(self) -> tuple[nn.Module, nn.Module]:
        """The modules A and B."""
        raise NotImplementedError

    @property
    def enabled(self) -> bool:
        """Whether it takes part in the model. What does not has no gradient, and asks nothing of a device."""
        raise NotImplementedError

    @enabled.setter
    def enabled(self, value: bool) -> None:
        raise NotImplementedError

    @property
    def importance(self) -> float:
        """What its output counts times."""
        raise NotImplementedError

    @importance.setter
    def importance(self, value: float) -> None:
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """R."""
        raise NotImplementedError

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """A and B; the controls in place of a factor that is on a device."""
        first, second = (_weight(factor) for factor in self.factors)
        return first, second

    @property
    def devices(self) -> list[BlackBoxLinear]:
        """Those of its factors that are on devices."""
        return [layer for factor in self.factors for layer in factor.modules() if isinstance(layer, BlackBoxLinear)]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained in it."""
        for factor in self.factors:
            yield from factor.parameters()

    @property
    def cost(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def __repr__(self) -> str:
        return f"{self.key} (rank {self.rank}, {'on' if self.enabled else 'off'})"


class LoraUnit(Unit):
    """A LoRA of peft around a projection.

    Args:
        layer: which transformer layer, from 0.
        name: one of `PROJECTIONS`.
        module: what peft has put there.
        importance: to begin with.
    """

    def __init__(self, layer: int, name: str, module: LoraLayer, importance: float = 1.0) -> None:
        super().__init__(layer, name)
        self.module = module
        self.importance = importance

    @property
    def factors(self) -> tuple[nn.Module, nn.Module]:
        """The modules A and B."""
        return self.module.lora_A[_ADAPTER], self.module.lora_B[_ADAPTER]

    @property
    def enabled(self) -> bool:
        """Whether it takes part in the model."""
        return not self.module.disable_adapters

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.module.enable_adapters(value)
        if not value:
            _drop_gradients(self)

    @property
    def importance(self) -> float:
        """What its output counts times."""
        return self._importance

    @importance.setter
    def importance(self, value: float) -> None:
        self._importance = value
        self.module.scaling[_ADAPTER] = value * self.module.lora_alpha[_ADAPTER] / self.module.r[_ADAPTER]

    @property
    def rank(self) -> int:
        """The rank r."""
        rank: int = self.module.r[_ADAPTER]
        return rank


class ShortcutUnit(Unit):
    """A low-rank shortcut.

    Args:
        layer: which transformer layer, from 0.
        name: one of `SHORTCUTS`.
        module: its projector.
    """

    def __init__(self, layer: int, name: str, module: Projector) -> None:
        super().__init__(layer, name)
        self.module = module

    @property
    def factors(self) -> tuple[nn.Module, nn.Module]:
        """The modules A and B."""
        return self.module.A, self.module.B

    @property
    def enabled(self) -> bool:
        """Whether it takes part in the model."""
        return self.module.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.module.enabled = value
        self.module.requires_grad_(value)
        if not value:
            _drop_gradients(self)

    @property
    def importance(self) -> float:
        """What its output counts times."""
        return self.module.importance

    @importance.setter
    def importance(self, value: float) -> None:
        self.module.importance = value

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.module.rank


def units_of(units: Sequence[Unit], *, enabled: bool | None = None, family: Family | None = None) -> list[Unit]:
    """Those of the units that are on or off, or of a family."""
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
    # An optimizer leaves alone what has no gradient: weights, moments and step counts stay as they are.
    for parameter in unit.parameters():
        parameter.grad = None
