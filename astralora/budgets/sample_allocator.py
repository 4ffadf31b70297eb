"""Move samples between device layers during training, for a fixed hardware budget (after HeteroLoRA)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from ..common.checks import check_whole
from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Session, Usage
from ..estimators.zero_order import ZeroOrder
from ..nn.layer import BlackBoxLinear
from .allocation import AllocationMode, allocate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Currency", "Ranking", "SampleAllocator"]

Ranking = Literal["neyman", "grad_norm", "snip"]
"""Score that determines the samples of each layer."""

Currency = Literal["hardware_seconds", "vectors", "programs"]
"""Unit of the budget."""

_DIVISION: dict[Ranking, AllocationMode] = {"neyman": "neyman", "grad_norm": "proportional", "snip": "proportional"}


class SampleAllocator:
    """Choose the number S of samples (perturbations) of each device layer by its gradient, within a budget.

    The scores are computed from the estimates of training, and cost no additional queries. For ``"neyman"``, the score
    is a = ||g|| sqrt(P + 1), the standard deviation of an estimate from one random direction for P controls. S is
    proportional to a / sqrt(cost), which minimises the sum of all variances. For ``"grad_norm"``, S is proportional to
    ||g||, and for ``"snip"`` to sum |w * dw|. ||g|| is the norm of the true gradient: the contributions of random
    directions and noise are subtracted (see `Estimator.gradient_energy`), and ||g||^2 is averaged over steps.

    Training is divided into periods. The control gradients of a period cost at most the budget. A layer without samples
    rests: it computes forward passes, and spends nothing on gradients. (The adjoint surrogate is an exception: it must
    measure the input gradients for earlier layers.) If a layer rests in a period, the next period begins with one step
    of all layers with their original samples, so that all scores stay up to date.

    Args:
        layers: layers by name, or a model that contains device layers.
        ranking: name of the score.
        period: number of steps after which resting layers are measured again and a new budget begins.
        turn_on: share of the layers that get samples, those with the highest scores; the others rest.
        budget: budget of one period, in ``currency``. None for the cost of the original samples, which is measured in
            the first period.
        currency: unit of the budget and the costs.
        group: process group of data-parallel training, such as ``torch.distributed.group.WORLD``. Each process has its
            own chips and its own budget. The processes combine their scores and use the same samples. If layers may
            rest, give DistributedDataParallel ``find_unused_parameters=True``; otherwise a resting layer gets a
            gradient of zeros, and an optimizer with momentum still changes its controls.

    Attributes:
        samples: number of samples of each layer in the present step.
        spent: cost in the present period; never less than the counted cost on the devices.

    Raises:
        ConfigurationError: the estimator of a layer has no number of samples, or a device has no operation times.
    """

    def __init__(
        self,
        layers: nn.Module | Mapping[str, BlackBoxLinear],
        ranking: Ranking = "neyman",
        *,
        period: int = 10,
        turn_on: float = 1.0,
        budget: float | None = None,
        currency: Currency = "hardware_seconds",
        group: ProcessGroup | None = None,
    ) -> None:
        if isinstance(layers, nn.Module):
            layers = {name: layer for name, layer in layers.named_modules() if isinstance(layer, BlackBoxLinear)}
        self.layers = dict(layers)
        _check(self.layers, ranking, period, turn_on, budget, currency)
        self._ranking: Ranking = ranking
        self._period, self._turn_on, self._currency = period, turn_on, currency
        self.budget = budget
        self._group = group
        self.spent = 0.0
        self._step = 0
        self._original = {name: _estimator(layer).count(len(layer.controls)) for name, layer in self.layers.items()}
        self.samples = dict(self._original)
        self._means: dict[str, list[float]] = {}  # weighted sum and sum of weights of each score
        self._costs: dict[str, list[float]] = {}  # of one sample, and other costs of a step
        for name, layer in self.layers.items():
            _estimator(layer).quota = partial(self._grant, name)

    @contextmanager
    def step(self) -> Generator[None]:
        """Set the samples for one training step; run all its forward and backward passes in the ``with`` block."""
        position = self._step % self._period
        if position == 0:
            if self._step and self.budget is None:
                self.budget = self.spent
            self.spent = 0.0
        self.samples = self._shares(position)
        for name, layer in self.layers.items():
            layer.resting = self.samples[name] == 0
            if layer.resting:
                layer.controls.grad = None
            else:
                _estimator(layer).samples = self.samples[name]
        yield
        self._update_scores()
        self._step += 1

    def means(self) -> dict[str, float]:
        """Return the mean gradient energy or SNIP score of each layer; layers without an estimate are left out."""
        return _means(self._means)

    def scores(self) -> dict[str, float]:
        """Return the present score of each layer; 0 for layers without an estimate."""
        return self._scores(self._means)

    def _scores(self, sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
        means = _means(sums)
        if self._ranking == "snip":
            return {name: means.get(name, 0.0) for name in self.layers}
        norms = {name: sqrt(max(means.get(name, 0.0), 0.0)) for name in self.layers}
        if self._ranking == "grad_norm":
            return norms
        return {name: norms[name] * sqrt(len(layer.controls) + 1) for name, layer in self.layers.items()}

    def close(self) -> None:
        """Restore the original samples of all layers."""
        for name, layer in self.layers.items():
            layer.resting = False
            _estimator(layer).samples, _estimator(layer).quota = self._original[name], None

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later steps depend on."""
        return {
            "step": self._step,
            "budget": self.budget,
            "spent": self.spent,
            "samples": dict(self.samples),
            "means": {name: list(mean) for name, mean in self._means.items()},
            "costs": {name: list(cost) for name, cost in self._costs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._step, self.budget, self.spent = state["step"], state["budget"], state["spent"]
        self.samples = dict(state["samples"])
        self._means = {name: list(mean) for name, mean in state["means"].items()}
        self._costs = {name: list(cost) for name, cost in state["costs"].items()}

    def _shares(self, position: int) -> dict[str, int]:
        names = list(self.layers)
        measures_all = position == 0 and any(self.samples[name] == 0 for name in names)
        if self.budget is None or measures_all or any(name not in self._costs for name in names):
            return dict(self._original)
        sums, costs, left = self._pooled((self.budget - self.spent) / (self._period - position))
        scores = self._scores(sums)
        kept = sorted(names, key=lambda name: -scores[name])[: ceil(self._turn_on * len(names))]
        left -= sum(costs[name][1] for name in kept)
        shares = allocate(
            [scores[name] for name in kept],
            [costs[name][0] for name in kept],
            max(left, 0.0),
            _DIVISION[self._ranking],
        )
        given = dict(zip(kept, shares.tolist(), strict=True))
        return {name: given.get(name, 0) for name in names}

    def _pooled(self, left: float) -> tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]], float]:
        """Return, over all processes, the sum of the scores, the largest costs, and the smallest remaining budget."""
        if self._group is None:
            return self._means, self._costs, left
        names = list(self.layers)
        where = next(iter(self.layers.values())).controls.device
        sums = torch.tensor([self._means.get(name, [0.0, 0.0]) for name in names], dtype=torch.float64, device=where)
        most = torch.tensor([*(p for name in names for p in self._costs[name]), -left], dtype=torch.float64).to(where)
        torch.distributed.all_reduce(sums, group=self._group)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=self._group)
        *prices, negative = most.tolist()
        costs = dict(zip(names, zip(prices[::2], prices[1::2], strict=True), strict=True))
        return dict(zip(names, sums.tolist(), strict=True)), costs, -negative

    def _grant(self, name: str, session: Session, wanted: int, each: int, more: int, vectors: int) -> int:
        """Return the number of perturbations that the remaining budget of the period can pay for."""
        sample = self._price(session.spec, each, vectors)
        extra = self._price(session.spec, more, vectors)
        self._costs[name] = [sample, extra]
        granted = wanted
        if self.budget is not None:
            granted = min(wanted, int((self.budget * (1 + 1e-12) - self.spent - extra) / sample))
        if granted <= 0:
            return 0
        self.spent += extra + granted * sample
        return granted

    def _price(self, spec: DeviceSpec, programs: int, vectors: int) -> float:
        usage = Usage(programs=programs, vectors=programs * vectors)
        if self._currency == "hardware_seconds":
            return usage.hardware_seconds(spec)
        return float(usage.vectors if self._currency == "vectors" else usage.programs)

    def _update_scores(self) -> None:
        memory = 1 - 1 / self._period
        for name, layer in self.layers.items():
            if layer.resting or layer.controls.grad is None:
                continue
            value = _estimator(layer).gradient_energy
            if self._ranking == "snip":
                value = float((layer.controls.detach() * layer.controls.grad).abs().sum())
            if value is not None:
                total, weight = self._means.get(name, [0.0, 0.0])
                self._means[name] = [memory * total + value, memory * weight + 1]


def _means(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in sums.items() if weight}


def _estimator(layer: BlackBoxLinear) -> ZeroOrder:
    estimator = layer.estimator
    assert isinstance(estimator, ZeroOrder)
    return estimator


def _check(
    layers: Mapping[str, BlackBoxLinear],
    ranking: str,
    period: int,
    turn_on: float,
    budget: float | None,
    currency: str,
) -> None:
    if not layers:
        raise ConfigurationError("there are no device layers; attach devices first")
    if ranking not in get_args(Ranking):
        raise ConfigurationError(f"ranking must be one of {', '.join(get_args(Ranking))}, not {ranking!r}")
    if currency not in get_args(Currency):
        raise ConfigurationError(f"currency must be one of {', '.join(get_args(Currency))}, not {currency!r}")
    check_whole("period", period)
    if not 0 < turn_on <= 1:
        raise ConfigurationError(f"turn_on must be above 0 and at most 1, not {turn_on!r}")
    if budget is not None and budget < 0:
        raise ConfigurationError(f"the budget of a period must be at least 0, not {budget!r}")
    for name, layer in layers.items():
        if not isinstance(layer.estimator, ZeroOrder):
            raise ConfigurationError(
                f"the estimator of {name!r} is {type(layer.estimator).__name__.lower()!r}, which has no number of "
                f"samples; choose one that has, such as 'orthogonal' or 'gaussian'"
            )
        spec = layer.session.spec
        if currency == "hardware_seconds" and not (spec.program_seconds or spec.vector_seconds):
            raise ConfigurationError(
                f"the spec of {spec.name!r} has no operation times; choose 'programs' or 'vectors' as the currency"
            )
