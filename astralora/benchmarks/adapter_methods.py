"""Compare ways to spend a budget of trained parameters on adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..adapters import AdaptedModel, Reallocation, adapt, score, search
from ..adapters.units import units_of
from ..common.table import Table
from .language import mean_loss

__all__ = ["ADAPTER_METHODS", "AdapterMethod", "Batch", "Budget"]

Batch = Mapping[str, Tensor]

_CHOICES = 10  # reallocations in a run; the published interval is a tenth of an epoch, and here of a run
_SCORED = 8  # batches that a score is computed from


@dataclass(frozen=True, slots=True)
class Budget:
    """Limit the parameters that a method may train at any time.

    All adapters of the search space have the same number of parameters. Adapters into or out of the feed-forward layer,
    which is four times as wide as the residual stream, therefore have two fifths of the rank.

    Attributes:
        rank: rank of an adapter with the stream's width on both sides; a multiple of 5.
        share: share of the adapters of the search space that are enabled.
        adapters: number of enabled adapters.
        numbers: number of parameters of the enabled adapters.
    """

    rank: int
    share: float
    adapters: int
    numbers: int

    @classmethod
    def of(cls, model: nn.Module, rank: int, share: float) -> Self:
        """Return the budget of a share of all adapters of a model; the model stays unchanged."""
        units = adapt(deepcopy(model), _search_space(rank)).units
        on = max(round(share * len(units)), 1)
        return cls(rank, share, on, on * units[0].cost)


class AdapterMethod(ABC):
    """Spend a budget of trained parameters on the adapters of a frozen model.

    Args:
        model: pretrained model, which is changed.
        budget: limit on the trained parameters.
        batches: endless batches of the text to adapt to, for scores.
        steps: number of training steps.
        seed: seed of everything random in the method.

    Attributes:
        adapted: model with its adapters.
    """

    rates: ClassVar[tuple[float, ...]] = (3e-3, 1e-2, 3e-2)
    """Learning rates to choose from: the same number for every method."""

    def __init__(self, model: nn.Module, budget: Budget, batches: Iterator[Batch], steps: int, seed: int) -> None:
        self.budget, self.batches, self.steps, self.seed = budget, batches, steps, seed
        self.adapted = self.adapt(model)

    @abstractmethod
    def adapt(self, model: nn.Module) -> AdaptedModel:
        """Put adapters into the model."""

    def before_step(self, step: int) -> None:
        """Prepare a step, counted from 0; called before each one."""


class Uniform(AdapterMethod):
    """Use LoRA on every projection, with the lowest common rank that reaches the budget."""

    def adapt(self, model: nn.Module) -> AdaptedModel:
        """Compute the rank from the cost of rank one, and add the adapters."""
        one, _ = adapt(deepcopy(model), _scaled(1, disable_projector=True)).parameter_counts()
        rank = ceil(self.budget.numbers / one)
        return adapt(model, _scaled(rank, disable_projector=True), seed=self.seed)


class Static(AdapterMethod):
    """Choose the best of all adapters by one score before training."""

    def adapt(self, model: nn.Module) -> AdaptedModel:
        """Score all adapters, and enable those that `search` chooses."""
        adapted = adapt(model, _search_space(self.budget.rank), seed=self.seed)
        scores = score(adapted, self.batches, count=_SCORED, loss=_loss, seed=self.seed)
        found = search(scores, adapted.config, turn_on=self.budget.share, seed=self.seed)
        adapted.set_enabled({unit.key: found.resolve(unit.layer, unit.name).enabled for unit in adapted.units})
        return adapted


class Dynamic(AdapterMethod):
    """Choose the best of all adapters ten times in a run, by HeteroLoRA."""

    options: ClassVar[dict[str, Any]] = {"proxy": "grad_norm", "groups": "combined"}

    def adapt(self, model: nn.Module) -> AdaptedModel:
        """Add all adapters, and set up their reallocation."""
        adapted = adapt(model, _search_space(self.budget.rank), seed=self.seed)
        ranked = units_of(adapted.units, family="lora") if self.options["groups"] == "off" else adapted.units
        self.reallocation = Reallocation(
            adapted,
            self.batches,
            interval=max(self.steps // _CHOICES, 1),
            turn_on=min(self.budget.adapters / len(ranked), 1.0),
            count=_SCORED,
            loss=_loss,
            seed=self.seed,
            **self.options,
        )
        return adapted

    def before_step(self, step: int) -> None:
        """Reallocate the adapters if this step is due."""
        self.reallocation.before_step(step)


class DynamicLora(Dynamic):
    """Choose among LoRA adapters only, without shortcuts, with the same number of parameters."""

    options: ClassVar[dict[str, Any]] = {"proxy": "grad_norm", "groups": "off"}


class RandomChoice(Dynamic):
    """Choose adapters at random ten times in a run."""

    options: ClassVar[dict[str, Any]] = {"proxy": "constant", "groups": "combined"}


ADAPTER_METHODS: Table[AdapterMethod] = Table("adapter method", AdapterMethod)
"""Every method of this benchmark by name."""

ADAPTER_METHODS.add("uniform", Uniform)
ADAPTER_METHODS.add("dynamic", Dynamic)
ADAPTER_METHODS.add("dynamic-lora", DynamicLora)
ADAPTER_METHODS.add("static", Static)
ADAPTER_METHODS.add("random", RandomChoice)


def _search_space(rank: int) -> dict[str, Any]:
    """Configure LoRA and shortcuts everywhere, of r (d + d) or 2/5 r (d + 4 d) parameters each."""
    wide = _scaled(2 * rank // 5)["default"]
    fewer = {"r": wide["r"], "lora_alpha": wide["lora_alpha"]}
    return _scaled(rank) | {"all_layers": {"fc1": fewer, "fc2": fewer}}


def _scaled(rank: int, **more: Any) -> dict[str, Any]:
    """Return the configuration of adapters with a rank."""
    # With an alpha of twice the rank, the scale of an adapter's output does not depend on its rank.
    return {"default": {"r": rank, "lora_alpha": 2.0 * rank, "shortcut_alpha": 2.0 * rank, **more}}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of a batch."""
    return mean_loss(model, batch["inputs"], batch["targets"])
