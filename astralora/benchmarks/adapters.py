"""Whether adapters that are chosen beat adapters everywhere, for the same budget of trained numbers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, sqrt
from statistics import fmean, stdev
from time import perf_counter
from typing import Any, ClassVar

from torch import Tensor, nn, optim

from ..adapters import AdaptedModel, AdapterConfig, Reallocation, adapt, score, search
from ..adapters.search import Groups
from ..errors import ConfigurationError
from ..extras import require
from ..table import Table
from ..tasks import sources, topics
from .language import BATCH, evaluate, make_opt, mean_loss, stretches, warmed_cosine

__all__ = ["ADAPTER_METHODS", "AdapterMethod", "adapters", "compare", "verdict"]

Record = dict[str, Any]
Batch = Mapping[str, Tensor]

_WARMUP = 20
_PRETRAINING_RATE = 4e-3
_SCORED = 16  # batches
_INTERVALS = 10  # choices in a run that takes turns
# Learning rates are chosen on this seed, which no reported run has.
_TUNING_SEED = 1_000_003


class AdapterMethod(ABC):
    """A way to spend a budget of trained numbers on the adapters of a model.

    Args:
        base: to be adapted, in place.
        batches: of training data, for scores.
        rank: of an adapter that is on.
        share: of the adapters, or of the numbers of all at that rank.
        steps: of the run.
        seed: of everything random in it.
    """

    rates: ClassVar[tuple[float, ...]] = (3e-3, 1e-2, 3e-2)
    """Learning rates to choose from: as many for every method."""

    def __init__(
        self, base: nn.Module, batches: Iterator[Batch], rank: int, share: float, steps: int, seed: int
    ) -> None:
        self.batches, self.rank, self.share, self.steps, self.seed = batches, rank, share, steps, seed
        self.adapted = self.adapt(base)

    @abstractmethod
    def adapt(self, base: nn.Module) -> AdaptedModel:
        """Put adapters into the model."""

    def before_step(self, step: int) -> None:
        """Something is done between steps, counted from 0."""


class Uniform(AdapterMethod):
    """LoRA on every projection, at the least rank that comes to the share of all numbers."""

    def adapt(self, base: nn.Module) -> AdaptedModel:
        """Count first, then adapt."""
        everything = adapt(copy.deepcopy(base), {"default": {"r": self.rank}}).units
        one = sum(unit.cost // unit.rank for unit in everything if unit.family == "lora")
        rank = max(ceil(self.share * sum(unit.cost for unit in everything) / one), 1)
        return adapt(base, {"default": {"r": rank, "disable_projector": True}}, seed=self.seed)


class Static(AdapterMethod):
    """The best share of all adapters, by scores that are found once, before training."""

    def adapt(self, base: nn.Module) -> AdaptedModel:
        """Score all of them in a copy, and put in what deserves it."""
        trial = adapt(copy.deepcopy(base), {"default": {"r": self.rank}}, seed=self.seed)
        scores = score(trial, self.batches, count=_SCORED, loss=_loss, seed=self.seed)
        found: AdapterConfig = search(scores, trial.config, turn_on=self.share, seed=self.seed)
        return adapt(base, found, seed=self.seed)


class Dynamic(AdapterMethod):
    """HeteroLoRA: the best share of all adapters, chosen anew ten times in a run."""

    proxy: ClassVar[str] = "grad_norm"
    groups: ClassVar[Groups] = "combined"

    def adapt(self, base: nn.Module) -> AdaptedModel:
        """All of them, to take turns."""
        adapted = adapt(base, {"default": {"r": self.rank}}, seed=self.seed)
        self._turns = Reallocation(
            adapted,
            self.batches,
            interval=max(self.steps // _INTERVALS, 1),
            turn_on=self.share,
            proxy=self.proxy,
            count=_SCORED,
            groups=self.groups,
            loss=_loss,
            seed=self.seed,
        )
        return adapted

    def before_step(self, step: int) -> None:
        """Choose anew if it is time."""
        self._turns.before_step(step)


class DynamicLora(Dynamic):
    """The same without shortcuts: the best share of all LoRA."""

    groups: ClassVar[Groups] = "off"


class Chance(Dynamic):
    """The same by chance."""

    proxy: ClassVar[str] = "constant"


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
    pretraining: int = 800,
    width: int = 64,
    layers: int = 2,
    rank: int = 8,
    turn_on: float = 0.25,
    listener: Callable[[Record, int], None] | None = None,
) -> list[Record]:
    """Adapt a small OPT that has learned English to the source code of Python, byte by byte.

    For each seed a model is trained whole on the documentation of Python, and then frozen; every method adapts that
    same model to modules of Python's own library. Every method first chooses its learning rate, from as many as the
    others have, by the validation loss of one run on a seed of its own. Adapters are trained by AdamW.

    Args:
        methods: names in `ADAPTER_METHODS`.
        seeds: of models, adapters and data order.
        steps: of adaptation, which count as an epoch.
        pretraining: steps before it.
        width: of the model, a multiple of 16.
        layers: of the model.
        rank: of an adapter that is on.
        turn_on: share of the adapters that are on.
        listener: told every record as it comes, and how many there will be.

    Returns:
        Flat records of part ("tuning" or "run"), method, seed, rate, rank, steps, base_loss before adaptation,
        validation_loss and test_loss in nats a byte, adapters_on and trained_parameters (both means over the steps) and
        seconds_per_step.

    Raises:
        ConfigurationError: transformers or peft is not installed, or there is no such method.
    """
    if width % 16:
        raise ConfigurationError(f"the model's width must be a multiple of 16, and {width} is not")
    kinds = {name: ADAPTER_METHODS.find(name) for name in methods}
    for library in ("transformers", "peft"):
        require(library, "'astralora bench adapters'", extra="lowrank")
    bases: dict[int, nn.Module] = {}
    total = sum(len(kind.rates) + len(seeds) for kind in kinds.values())
    records: list[Record] = []

    def run(part: str, name: str, rate: float, seed: int) -> Record:
        if seed not in bases:
            bases[seed] = _pretrained(width, layers, pretraining, seed)
        base = copy.deepcopy(bases[seed])
        found = _adapt(kinds[name], base, rate, rank, turn_on, steps, seed)
        records.append(
            {"part": part, "method": name, "seed": seed, "rate": rate, "rank": rank, "steps": steps, **found}
        )
        if listener is not None:
            listener(records[-1], total)
        return records[-1]

    for name, kind in kinds.items():
        tried = [run("tuning", name, rate, _TUNING_SEED) for rate in kind.rates]
        best = min(tried, key=lambda record: record["validation_loss"])["rate"]
        for seed in seeds:
            run("run", name, best, seed)
    return records


def compare(records: Sequence[Record], reference: str = "uniform") -> list[Record]:
    """Mean test losses with standard errors, and differences to a reference on the same seeds.

    Args:
        records: of `adapters`.
        reference: name of a method.

    Returns:
        Records of method, rate, trained_parameters, test_loss, error, difference and difference_error; None for what
        cannot be known, as errors of a single seed are.
    """
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["part"] == "run":
            runs.setdefault(record["method"], {})[record["seed"]] = record
    rows = []
    for method, mine in runs.items():
        losses = [record["test_loss"] for record in mine.values()]
        pairs = mine.keys() & runs.get(reference, {}).keys() if method != reference else ()
        gaps = [mine[seed]["test_loss"] - runs[reference][seed]["test_loss"] for seed in sorted(pairs)]
        rows.append(
            {
                "method": method,
                "rate": next(iter(mine.values()))["rate"],
                "trained_parameters": fmean(record["trained_parameters"] for record in mine.values()),
                "test_loss": fmean(losses),
                "error": _standard_error(losses),
                "difference": fmean(gaps) if gaps else None,
                "difference_error": _standard_error(gaps),
            }
        )
    return rows


def verdict(rows: Sequence[Record], method: str = "dynamic") -> str | None:
    """What a comparison says of a method, in a sentence; None where it was not compared.

    A difference counts from two standard errors on.
    """
    row = next((row for row in rows if row["method"] == method), None)
    if row is None or row["difference"] is None:
        return None
    if row["difference_error"] is None:
        return f"One seed does not tell whether {method!r} beats uniform LoRA of the same budget."
    gap, error = row["difference"], row["difference_error"]
    by = f"by {abs(gap):.3f} ± {error:.3f} nats a byte"
    if abs(gap) <= 2 * error:
        return f"These seeds do not tell whether {method!r} beats uniform LoRA of the same budget ({by})."
    if gap < 0:
        return f"{method!r} beats uniform LoRA of the same budget {by}."
    return f"{method!r} does not beat uniform LoRA of the same budget: it is worse {by}."


def _standard_error(values: Sequence[float]) -> float | None:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def _pretrained(width: int, layers: int, steps: int, seed: int) -> nn.Module:
    model = make_opt(width, layers, seed)
    optimizer = optim.Adam(model.parameters(), lr=_PRETRAINING_RATE)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, warmed_cosine(steps, 5 * _WARMUP))
    for inputs, targets in stretches(topics().train, steps, BATCH, seed):
        optimizer.zero_grad()
        mean_loss(model, inputs, targets).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _adapt(
    kind: type[AdapterMethod], base: nn.Module, rate: float, rank: int, share: float, steps: int, seed: int
) -> Record:
    text = sources()
    before = evaluate(base, text.test)
    start = perf_counter()
    scored = ({"inputs": x, "targets": y} for x, y in stretches(text.train, 10**9, BATCH, seed + 1))
    method = kind(base, scored, rank, share, steps, seed)
    model, units = method.adapted.model, method.adapted.units
    # Those that are off have no gradient, and are left alone.
    optimizer = optim.AdamW([p for unit in units for p in unit.parameters()], lr=rate, weight_decay=0.0)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, warmed_cosine(steps, _WARMUP))
    on, trained = 0, 0
    for step, (inputs, targets) in enumerate(stretches(text.train, steps, BATCH, seed)):
        method.before_step(step)
        on += sum(unit.enabled for unit in units)
        trained += sum(unit.cost for unit in units if unit.enabled)
        optimizer.zero_grad()
        mean_loss(model, inputs, targets).backward()
        optimizer.step()
        schedule.step()
    seconds = (perf_counter() - start) / steps
    return {
        "base_loss": before,
        "validation_loss": evaluate(model, text.validation),
        "test_loss": evaluate(model, text.test),
        "adapters_on": on / steps,
        "trained_parameters": trained / steps,
        "seconds_per_step": seconds,
    }


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return mean_loss(model, batch["inputs"], batch["targets"])
