"""What low-rank training costs in quality, and saves in memory, on a small language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, ClassVar

from torch import nn, optim

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..common.table import Table
from ..lowrank import OIALR
from ..optim import Flora, state_bytes
from ..tasks import Text, topics
from .language import BATCH, evaluate, make_opt, mean_loss, stretches, warmed_cosine

__all__ = ["LOWRANK", "LowRankMethod", "lowrank"]

Record = dict[str, Any]

_WARMUP = 100
# Learning rates are chosen on this seed, which no reported run has.
_TUNING_SEED = 1_000_003


class LowRankMethod(ABC):
    """A way to train a model with less: an optimizer, and what else happens along the way.

    Args:
        model: to train; may be changed.
        rate: largest learning rate of the run.
        rank: what the method keeps of each matrix.
        seed: of everything random in it.
        steps: of the run.
    """

    rates: ClassVar[tuple[float, ...]] = (2e-3, 4e-3, 8e-3)
    """Learning rates to choose from: as many for every method."""

    def __init__(self, model: nn.Module, rate: float, rank: int, seed: int, steps: int) -> None:
        self.model = model
        self.optimizer = self.make_optimizer(rate, rank, seed)

    @abstractmethod
    def make_optimizer(self, rate: float, rank: int, seed: int) -> optim.Optimizer:
        """The optimizer of the model's parameters."""

    def after_step(self, step: int) -> None:
        """Something is done between steps, counted from 1."""


class Adam(LowRankMethod):
    """Adam, with both moments in full."""

    def make_optimizer(self, rate: float, rank: int, seed: int) -> optim.Optimizer:
        """Adam with its defaults."""
        return optim.Adam(self.model.parameters(), lr=rate)


class Projected(LowRankMethod):
    """Flora, with a momentum that looks back on few steps: what it adds in noise stays below what it averages away."""

    options: ClassVar[dict[str, Any]] = {"beta1": 0.3, "kappa": 20, "projection": "orthonormal"}

    def make_optimizer(self, rate: float, rank: int, seed: int) -> optim.Optimizer:
        """Flora whose learning rate means what Adam's does."""
        return Flora(self.model.parameters(), lr=rate, rank=rank, seed=seed, scale_parameter=False, **self.options)


class QuantizedProjected(Projected):
    """The same, in eight bits."""

    options: ClassVar[dict[str, Any]] = {**Projected.options, "quantization": True}


class PublishedProjected(Projected):
    """Flora with the momentum and the subspaces of its paper."""

    options: ClassVar[dict[str, Any]] = {"beta1": 0.9, "kappa": 1000}


class Settling(LowRankMethod):
    """OIALR: whole weights for two thirds of the run, and what is between their orthogonal bases after that.

    All weights are cut at the first updates, so that there is a third of the run left to make up for it.
    """

    def __init__(self, model: nn.Module, rate: float, rank: int, seed: int, steps: int) -> None:
        super().__init__(model, rate, rank, seed, steps)
        self._oialr = OIALR(
            model,
            self.optimizer,
            delay=2 * steps // 3,
            stability_frequency=max(steps // 15, 1),
            sigma_cutoff_fraction=0.1,
            network_layer_perc_step=1.0,
            min_rank=rank,
        )

    def after_step(self, step: int) -> None:
        """An update, when it is time for one."""
        self._oialr.step()


class SettlingAdam(Settling, Adam):
    """OIALR on Adam."""


class SettlingProjected(Settling, Projected):
    """OIALR on Flora."""


LOWRANK: Table[LowRankMethod] = Table("low-rank method", LowRankMethod)
"""Every method of this benchmark by name."""

LOWRANK.add("adam", Adam)
LOWRANK.add("flora", Projected)
LOWRANK.add("flora-8bit", QuantizedProjected)
LOWRANK.add("flora-published", PublishedProjected)
LOWRANK.add("oialr", SettlingAdam)
LOWRANK.add("oialr-flora", SettlingProjected)


def lowrank(
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 1500,
    width: int = 64,
    layers: int = 2,
    rank: int | None = None,
    listener: Callable[[Record, int], None] | None = None,
) -> list[Record]:
    """Train a small OPT on English text, byte by byte, with each method and as many steps of as many bytes.

    Every method first chooses its learning rate, from as many as the others have, by the validation loss of one run on
    a seed of its own. The model is OPT (Zhang et al., arXiv 2205.01068) as transformers builds it from a configuration.

    Args:
        methods: names in `LOWRANK`.
        seeds: of weights, data order and projections.
        steps: of training.
        width: of the model, a multiple of 16.
        layers: of the model.
        rank: of what is low-rank; an eighth of the width unless given.
        listener: told every record as it comes, and how many there will be.

    Returns:
        Flat records of part ("tuning" or "run"), method, seed, rate, rank, steps, validation_loss and test_loss in nats
        a byte, state_bytes, seconds_per_step; parameters that the model begins with, and those that it ends with:
        trainable, and total with bases that are fixed.

    Raises:
        ConfigurationError: transformers is not installed, or there is no such method.
    """
    if width % 16:
        raise ConfigurationError(f"the model's width must be a multiple of 16, and {width} is not")
    kinds = {name: LOWRANK.find(name) for name in methods}
    require("transformers", "'astralora bench lowrank'", extra="lowrank")
    rank = rank or width // 8
    text = topics()
    total = sum(len(kind.rates) + len(seeds) for kind in kinds.values())
    records: list[Record] = []

    def run(part: str, name: str, rate: float, seed: int) -> Record:
        found = _train(kinds[name], text, rate, rank, seed, steps=steps, width=width, layers=layers)
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


def _train(
    kind: type[LowRankMethod],
    text: Text,
    rate: float,
    rank: int,
    seed: int,
    *,
    steps: int,
    width: int,
    layers: int,
) -> Record:
    model = make_opt(width, layers, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    method = kind(model, rate, rank, seed, steps)
    schedule = optim.lr_scheduler.LambdaLR(method.optimizer, warmed_cosine(steps, _WARMUP))
    start = perf_counter()
    for step, (inputs, targets) in enumerate(stretches(text.train, steps, BATCH, seed), start=1):
        loss = mean_loss(model, inputs, targets)
        method.optimizer.zero_grad()
        loss.backward()
        method.optimizer.step()
        schedule.step()
        method.after_step(step)
    seconds = (perf_counter() - start) / steps
    return {
        "steps": steps,
        "validation_loss": evaluate(model, text.validation),
        "test_loss": evaluate(model, text.test),
        "state_bytes": state_bytes(method.optimizer),
        "parameters": parameters,
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "seconds_per_step": seconds,
    }
