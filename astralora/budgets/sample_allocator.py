"""Moving samples between device layers while they train: HeteroLoRA's question, asked of hardware budgets."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Session, Usage
from ..estimators.zero_order import ZeroOrder
from ..nn.layer import BlackBoxLinear
from .allocation import AllocationMode, allocate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Currency", "Ranking", "SampleAllocator"]

Ranking = Literal["neyman", "grad_norm", "snip"]
"""By what the layers share."""

Currency = Literal["hardware_seconds", "vectors", "programs"]
"""What the budget is in."""

_DIVISION: dict[Ranking, AllocationMode] = {"neyman": "neyman", "grad_norm": "proportional", "snip": "proportional"}


class SampleAllocator:
    """Gives every device layer as many perturbations a step as its gradient deserves, for the same budget.

    A layer's scores come from the estimates that training pays for anyway, and never from queries of their own:
    ``"neyman"`` scores a = ||g|| sqrt(P + 1), what one random direction leaves of P controls as standard deviation, and
    gives S proportional to a / sqrt(cost), so that the sum of all variances is the least; ``"grad_norm"`` gives S
    proportional to ||g||, ``"snip"`` to sum |w * dw|. ||g|| is free of what directions and detector noise add to an
    estimate's own norm, see `Estimator.gradient_energy`, and is averaged over steps.

    Time goes by in periods. No period spends more on control gradients than the budget, whatever the answers are like.
    A layer without samples rests: it is passed forward, and spends nothing on gradients (save with the adjoint
    surrogate, which must ask for those of the layers before it). Every period in which a layer rests begins with one
    step of all layers, at the samples that they were made with, so that its score stays true.

    Args:
        layers: by name, or a model with such layers in it.
        ranking: what to share by.
        period: steps after which layers are surveyed and the budget begins anew.
        turn_on: share of the layers that get samples, by their rank; the others rest.
        budget: of one period, in ``currency``. None for what the samples that the layers were made with take: the
            first period finds that out.
        currency: what the budget and the costs are in.
        group: of data-parallel training, such as ``torch.distributed.group.WORLD``: its processes, each with chips of
            its own, pool what they have found, and share alike. Budgets are those of each process. Where layers may
            rest, give DistributedDataParallel ``find_unused_parameters=True``, or what rests gets a gradient of zeros,
            and a momentum moves it on.

    Attributes:
        samples: of the present step, by layer.
        spent: in the present period; never less than what the devices have counted.

    Raises:
        ConfigurationError: a layer whose estimator takes no samples, or a device without a price.
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
        self._full = {name: _estimator(layer).count(len(layer.controls)) for name, layer in self.layers.items()}
        self.samples = dict(self._full)
        self._means: dict[str, list[float]] = {}  # of each layer's score or energy: the sum, and its weight
        self._costs: dict[str, list[float]] = {}  # of one sample, and of what comes on top in a step
        for name, layer in self.layers.items():
            _estimator(layer).quota = partial(self._grant, name)

    @contextmanager
    def step(self) -> Generator[None]:
        """Around the forward and backward passes of one training step, all micro-batches of it."""
        position = self._step % self._period
        if position == 0:
            if self._step and self.budget is None:
                self.budget = self.spent
            self.spent = 0.0
        self.samples = self._share(position)
        for name, layer in self.layers.items():
            layer.resting = self.samples[name] == 0
            if layer.resting:
                layer.controls.grad = None
            else:
                _estimator(layer).samples = self.samples[name]
        yield
        self._learn()
        self._step += 1

    def scores(self) -> dict[str, float]:
        """What the layers share by at present; of those that were never asked, 0."""
        return self._scores(self._means)

    def _scores(self, sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
        means = {name: total / weight for name, (total, weight) in sums.items() if weight}
        if self._ranking == "snip":
            return {name: means.get(name, 0.0) for name in self.layers}
        norms = {name: sqrt(max(means.get(name, 0.0), 0.0)) for name in self.layers}
        if self._ranking == "grad_norm":
            return norms
        return {name: norms[name] * sqrt(len(layer.controls) + 1) for name, layer in self.layers.items()}

    def close(self) -> None:
        """Give all layers back the samples that they were made with."""
        for name, layer in self.layers.items():
            layer.resting = False
            _estimator(layer).samples, _estimator(layer).quota = self._full[name], None

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on."""
        return {
            "step": self._step,
            "budget": self.budget,
            "spent": self.spent,
            "samples": dict(self.samples),
            "means": {name: list(mean) for name, mean in self._means.items()},
            "costs": {name: list(cost) for name, cost in self._costs.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._step, self.budget, self.spent = state["step"], state["budget"], state["spent"]
        self.samples = dict(state["samples"])
        self._means = {name: list(mean) for name, mean in state["means"].items()}
        self._costs = {name: list(cost) for name, cost in state["costs"].items()}

    def _share(self, position: int) -> dict[str, int]:
        names = list(self.layers)
        survey = position == 0 and any(self.samples[name] == 0 for name in names)
        if self.budget is None or survey or any(name not in self._costs for name in names):
            return dict(self._full)
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
        """What all processes have found, the dearest of their prices, and the least that one of them has left."""
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
        """As many of an estimate's perturbations as the rest of the period's budget pays for."""
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

    def _learn(self) -> None:
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
        raise ConfigurationError("there are no device layers to share samples among; attach devices first")
    if ranking not in get_args(Ranking):
        raise ConfigurationError(f"samples are shared by {', '.join(get_args(Ranking))}, not {ranking!r}")
    if currency not in get_args(Currency):
        raise ConfigurationError(f"a budget is in {', '.join(get_args(Currency))}, not {currency!r}")
    if isinstance(period, bool) or not isinstance(period, int) or period < 1:
        raise ConfigurationError(f"period must be a whole number of steps of at least 1, not {period!r}")
    if not 0 < turn_on <= 1:
        raise ConfigurationError(f"turn_on must be above 0 and at most 1, not {turn_on!r}")
    if budget is not None and budget < 0:
        raise ConfigurationError(f"the budget of a period must be at least 0, not {budget!r}")
    for name, layer in layers.items():
        if not isinstance(layer.estimator, ZeroOrder):
            raise ConfigurationError(
                f"the estimator of {name!r} is {type(layer.estimator).__name__.lower()!r}, which takes no samples that "
                f"could be moved between layers; choose one that does, such as 'orthogonal' or 'gaussian'"
            )
        spec = layer.session.spec
        if currency == "hardware_seconds" and not (spec.program_seconds or spec.vector_seconds):
            raise ConfigurationError(
                f"{spec.name!r} does not say what its operations take; choose 'programs' or 'vectors' as the currency"
            )
