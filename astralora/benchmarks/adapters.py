"""Whether a few chosen adapters serve a small language model better than LoRA everywhere, for as many numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import Any, ClassVar, Self

from torch import Tensor, nn, optim

from ..adapters import AdaptedModel, Reallocation, adapt, score, search
from ..adapters.units import units_of
from ..common.errors import ConfigurationError
from ..common.extras import require
from ..common.table import Table
from ..tasks import Text, sources, topics
from .language import BATCH, evaluate, make_opt, mean_loss, stretches, warmed_cosine

__all__ = ["ADAPTER_METHODS", "AdapterMethod", "Budget", "adapters"]

Record = dict[str, Any]
Batch = Mapping[str, Tensor]

_CHOICES = 10  # in a run: the published tenth of an epoch, with a run for the epoch
_SCORED = 8  # batches that a score is made from
_WARMUP = 20
_PRETRAINING_RATE = 4e-3
_PRETRAINING_WARMUP = 100
# Learning rates are chosen on this seed, which no reported run has.
_TUNING_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class Budget:
    """What a method may train at any time.

    Every adapter of the search space costs the same, so that as many of them are as many numbers, whichever they are:
    those between the stream and the feed-forward layer, four times as wide, have two fifths of the rank.

    Attributes:
        rank: of an adapter from the stream to itself; a multiple of 5.
        share: of the adapters of the search space that are on.
        adapters: how many these are.
        numbers: that these have.
    """

    rank: int
    share: float
    adapters: int
    numbers: int

    @classmethod
    def of(cls, model: nn.Module, rank: int, share: float) -> Self:
        """A share of all adapters of a model, which is left as it is."""
        units = adapt(deepcopy(model), _search_space(rank)).units
        on = max(round(share * len(units)), 1)
        return cls(rank, share, on, on * units[0].cost)


class AdapterMethod(ABC):
    """A way to spend a budget of trained numbers on the adapters of a frozen model.

    Args:
        model: pretrained; is changed.
        budget: what may be trained at any time.
        batches: of text to adapt to, without end, for scores.
        steps: of the run.
        seed: of everything random in it.

    Attributes:
        adapted: the model and its adapters.
    """

    rates: ClassVar[tuple[float, ...]] = (3e-3, 1e-2, 3e-2)
    """Learning rates to choose from: as many for every method."""

    def __init__(self, model: nn.Module, budget: Budget, batches: Iterator[Batch], steps: int, seed: int) -> None:
        self.budget, self.batches, self.steps, self.seed = budget, batches, steps, seed
        self.adapted = self.adapt(model)

    @abstractmethod
    def adapt(self, model: nn.Module) -> AdaptedModel:
        """Put adapters into the model."""

    def before_step(self, step: int) -> None:
        """Something is done between steps, counted from 0."""


class Uniform(AdapterMethod):
    """LoRA on every projection, all of the least rank that comes to the budget."""

    def adapt(self, model: nn.Module) -> AdaptedModel:
        """What one rank costs decides how many there are."""
        one, _ = adapt(deepcopy(model), _scaled(1, disable_projector=True)).parameter_counts()
        rank = ceil(self.budget.numbers / one)
        return adapt(model, _scaled(rank, disable_projector=True), seed=self.seed)


class Static(AdapterMethod):
    """The best of all adapters, by one score before training."""

    def adapt(self, model: nn.Module) -> AdaptedModel:
        """Score all, and leave on what `search` would."""
        adapted = adapt(model, _search_space(self.budget.rank), seed=self.seed)
        scores = score(adapted, self.batches, count=_SCORED, loss=_loss, seed=self.seed)
        found = search(scores, adapted.config, turn_on=self.budget.share, seed=self.seed)
        adapted.set_enabled({unit.key: found.resolve(unit.layer, unit.name).enabled for unit in adapted.units})
        return adapted


class Dynamic(AdapterMethod):
    """HeteroLoRA: the best of all adapters, chosen anew ten times in a run."""

    options: ClassVar[dict[str, Any]] = {"proxy": "grad_norm", "groups": "combined"}

    def adapt(self, model: nn.Module) -> AdaptedModel:
        """All of them, to take turns."""
        adapted = adapt(model, _search_space(self.budget.rank), seed=self.seed)
        ranked = units_of(adapted.units, family="lora") if self.options["groups"] == "off" else adapted.units
        self.turns = Reallocation(
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
        """Choose anew if it is time."""
        self.turns.before_step(step)


class DynamicLora(Dynamic):
    """The same without shortcuts: as many, the best of all LoRA."""

    options: ClassVar[dict[str, Any]] = {"proxy": "grad_norm", "groups": "off"}


class Chance(Dynamic):
    """The same by lot."""

    options: ClassVar[dict[str, Any]] = {"proxy": "constant", "groups": "combined"}


ADAPTER_METHODS: Table[AdapterMethod] = Table("adapter method", AdapterMethod)
"""Every method of this benchmark by name."""

ADAPTER_METHODS.add("uniform", Uniform)
ADAPTER_METHODS.add("dynamic", Dynamic)
ADAPTER_METHODS.add("dynamic-lora", DynamicLora)
ADAPTER_METHODS.add("static", Static)
ADAPTER_METHODS.add("random", Chance)


def adapters(
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 400,
    pretraining: int = 1000,
    width: int = 64,
    layers: int = 2,
    rank: int = 10,
    turn_on: float = 0.25,
    listener: Callable[[Record, int], None] | None = None,
) -> list[Record]:
    """Adapt a small OPT that has read English to the source code of Python, byte by byte, with each method.

    For each seed a model is trained whole on the training part of `astralora.tasks.topics`, and frozen; every method
    then adapts that same model to `astralora.tasks.sources`, on the same batches. Every method first chooses its
    learning rate of Adam, from as many as the others have, by the validation loss of one run on a seed of its own.

    Args:
        methods: names in `ADAPTER_METHODS`.
        seeds: of models, adapters and data order.
        steps: of adaptation.
        pretraining: steps before that.
        width: of the model, a multiple of 16.
        layers: of the model.
        rank: of an adapter from the stream to itself, a multiple of 5; see `Budget`.
        turn_on: share of the adapters that are on; 25 % as published.
        listener: told every record as it comes, and how many there will be.

    Returns:
        Flat records of part ("tuning" or "run"), method, seed, rate, rank, steps, base_loss, validation_loss and
        test_loss in nats a byte, trained_parameters and adapters_on (the most at any step), adapters (all that there
        are), adapters_used (that were on at some step) and seconds_per_step, scores included.

    Raises:
        ConfigurationError: transformers or peft is not installed, there is no such method, or no such model.
    """
    if width % 16:
        raise ConfigurationError(f"the model's width must be a multiple of 16, and {width} is not")
    if rank < 1 or rank % 5:
        raise ConfigurationError(f"the rank must be a multiple of 5, so that all adapters cost the same; {rank} is not")
    if not 0 < turn_on <= 1:
        raise ConfigurationError(f"turn_on must be more than 0 and at most 1, not {turn_on!r}")
    kinds = {name: ADAPTER_METHODS.find(name) for name in methods}
    for library in ("transformers", "peft"):
        require(library, "'astralora bench adapters'", extra="lowrank")
    text = sources()
    bases: dict[int, nn.Module] = {}
    total = sum(len(kind.rates) + len(seeds) for kind in kinds.values())
    records: list[Record] = []

    def run(part: str, name: str, rate: float, seed: int) -> Record:
        if seed not in bases:
            bases[seed] = _pretrained(width, layers, pretraining, seed)
        found = _adapted(kinds[name], deepcopy(bases[seed]), text, rate, (rank, turn_on), steps, seed)
        records.append({"part": part, "method": name, "seed": seed, "rate": rate, "rank": rank, **found})
        if listener is not None:
            listener(records[-1], total)
        return records[-1]

    for name, kind in kinds.items():
        tried = [run("tuning", name, rate, _TUNING_SEED) for rate in kind.rates]
        best = min(tried, key=lambda record: record["validation_loss"])["rate"]
        for seed in seeds:
            run("run", name, best, seed)
    return records


def _pretrained(width: int, layers: int, steps: int, seed: int) -> nn.Module:
    model = make_opt(width, layers, seed)
    optimizer = optim.Adam(model.parameters(), lr=_PRETRAINING_RATE)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, warmed_cosine(steps, _PRETRAINING_WARMUP))
    for inputs, targets in stretches(topics().train, steps, BATCH, seed):
        optimizer.zero_grad()
        mean_loss(model, inputs, targets).backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return model


def _adapted(
    kind: type[AdapterMethod],
    model: nn.Module,
    text: Text,
    rate: float,
    spent: tuple[int, float],
    steps: int,
    seed: int,
) -> Record:
    base_loss = evaluate(model, text.test)
    budget = Budget.of(model, *spent)
    start = perf_counter()
    method = kind(model, budget, _scored_batches(text, seed), steps, seed)
    units = method.adapted.units
    # What is off has no gradient, and the optimizer leaves it and what it remembers of it alone.
    optimizer = optim.Adam([parameter for unit in units for parameter in unit.parameters()], lr=rate)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, warmed_cosine(steps, _WARMUP))
    trained, most, used = 0, 0, set[str]()
    for step, (inputs, targets) in enumerate(stretches(text.train, steps, BATCH, seed)):
        method.before_step(step)
        on = units_of(units, enabled=True)
        trained, most = max(trained, sum(unit.cost for unit in on)), max(most, len(on))
        used |= {unit.key for unit in on}
        optimizer.zero_grad()
        mean_loss(model, inputs, targets).backward()
        optimizer.step()
        schedule.step()
    seconds = (perf_counter() - start) / steps
    return {
        "steps": steps,
        "base_loss": base_loss,
        "validation_loss": evaluate(model, text.validation),
        "test_loss": evaluate(model, text.test),
        "trained_parameters": trained,
        "adapters_on": most,
        "adapters": len(units),
        "adapters_used": len(used),
        "seconds_per_step": seconds,
    }


def _search_space(rank: int) -> dict[str, Any]:
    """LoRA and shortcuts everywhere, of r (d + d) numbers from the stream to itself, and 2/5 r (d + 4 d) elsewhere."""
    wide = _scaled(2 * rank // 5)["default"]
    fewer = {"r": wide["r"], "lora_alpha": wide["lora_alpha"]}
    return _scaled(rank) | {"all_layers": {"fc1": fewer, "fc2": fewer}}


def _scaled(rank: int, **more: Any) -> dict[str, Any]:
    # Twice the rank: what is added counts alike whatever the rank, for learning rates as for scores.
    return {"default": {"r": rank, "lora_alpha": 2.0 * rank, "shortcut_alpha": 2.0 * rank, **more}}


def _scored_batches(text: Text, seed: int) -> Iterator[Batch]:
    """Training batches other than those that are trained on in turn."""
    while True:
        seed += _TUNING_SEED
        for inputs, targets in stretches(text.train, 1000, BATCH, seed):
            yield {"inputs": inputs, "targets": targets}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return mean_loss(model, batch["inputs"], batch["targets"])
