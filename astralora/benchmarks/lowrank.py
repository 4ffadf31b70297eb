"""Measure the quality and memory of low-rank training on a small language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, ClassVar

from torch import nn, optim

from ..common.extras import require
from ..common.table import Table
from ..lowrank import OIALR
from ..optim import Flora, state_bytes
from ..tasks import Text, topics
from .language import (
    BATCH,
    Record,
    check_width,
    evaluate,
    make_opt,
    mean_loss,
    stretches,
    tuned_runs,
    warmed_cosine,
)

__all__ = ["LOWRANK", "LowRankMethod", "lowrank"]

_WARMUP = 100


class LowRankMethod(ABC):
    """Train a model with less state or fewer parameters.

    Args:
        model: model to train, which may be changed.
        rate: largest learning rate of the run.
        rank: rank that the method keeps of each matrix.
        seed: seed of everything random in the method.
        steps: number of steps.

    Attributes:
        optimizer: optimizer of the model.
    """

    rates: ClassVar[tuple[float, ...]] = (2e-3, 4e-3, 8e-3)
    """Learning rates to choose from: the same number for every method."""

    def __init__(self, model: nn.Module, rate: float, rank: int, seed: int, steps: int) -> None:
        self.model, self.rate, self.rank, self.seed, self.steps = model, rate, rank, seed, steps
        self.optimizer = self.make_optimizer()

    @abstractmethod
    def make_optimizer(self) -> optim.Optimizer:
        """Make the optimizer of the model's parameters."""

    def after_step(self) -> None:
        """Update what the method needs after each step; do nothing by default."""


class Adam(LowRankMethod):
    """Use Adam, with both moments in full."""

    def make_optimizer(self) -> optim.Optimizer:
        """Make Adam with its default options."""
        return optim.Adam(self.model.parameters(), lr=self.rate)


class FloraMethod(LowRankMethod):
    """Use Flora with a momentum over few steps, so that projections add less noise than the average removes."""

    options: ClassVar[dict[str, Any]] = {"beta1": 0.3, "kappa": 20, "projection": "orthonormal"}

    def make_optimizer(self) -> optim.Optimizer:
        """Make Flora with a learning rate on the scale of Adam's."""
        return Flora(
            self.model.parameters(),
            lr=self.rate,
            rank=self.rank,
            seed=self.seed,
            scale_parameter=False,
            **self.options,
        )


class QuantizedFlora(FloraMethod):
    """Use Flora with its state in eight bits."""

    options: ClassVar[dict[str, Any]] = {**FloraMethod.options, "quantization": True}


class PublishedFlora(FloraMethod):
    """Use Flora with the published decay of the momentum and period of the subspaces."""

    options: ClassVar[dict[str, Any]] = {"beta1": 0.9, "kappa": 1000}


class OialrMethod(LowRankMethod):
    """Use OIALR: train whole weights for two thirds of the run, then only the cores between their orthogonal bases.

    All weights are cut at the first updates, so that a third of the run is left to recover from the cut.
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

    def after_step(self) -> None:
        """Update the bases if an update is due."""
        self._oialr.step()


class OialrAdam(OialrMethod, Adam):
    """Use OIALR with Adam."""


class OialrFlora(OialrMethod, FloraMethod):
    """Use OIALR with Flora."""


LOWRANK: Table[LowRankMethod] = Table("low-rank method", LowRankMethod)
"""Every method of this benchmark by name."""

LOWRANK.add("adam", Adam)
LOWRANK.add("flora", FloraMethod)
LOWRANK.add("flora-8bit", QuantizedFlora)
LOWRANK.add("flora-published", PublishedFlora)
LOWRANK.add("oialr", OialrAdam)
LOWRANK.add("oialr-flora", OialrFlora)


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
    """Train a small OPT on English text, byte by byte, with each method on the same batches.

    The model is OPT (Zhang et al., arXiv 2205.01068) as transformers builds it from a configuration. The learning rate
    is chosen by `tuned_runs`.

    Args:
        methods: names from `LOWRANK`.
        seeds: seeds of weights, data order and projections.
        steps: steps of training.
        width: width of the model, a multiple of 16.
        layers: number of layers of the model.
        rank: rank of the methods; an eighth of the width unless given.
        listener: called with every record and the number of records in all.

    Returns:
        Flat records of part ("tuning" or "run"), method, seed, rate, rank, steps, validation_loss and test_loss in nats
        per byte, state_bytes and seconds_per_step; and the number of parameters: at the start, trainable at the end,
        and total with fixed bases at the end.

    Raises:
        ConfigurationError: transformers is not installed, or a method or the width is invalid.
    """
    check_width(width)
    kinds = {name: LOWRANK.find(name) for name in methods}
    require("transformers", "'astralora bench lowrank'", extra="lowrank")
    rank = rank or width // 8
    text = topics()

    def measure(name: str, rate: float, seed: int) -> Record:
        found = _train(kinds[name], text, rate, rank, seed, steps=steps, width=width, layers=layers)
        return {"rank": rank, **found}

    return tuned_runs({name: kind.rates for name, kind in kinds.items()}, seeds, measure, listener)


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
    """Train a model with one method, and return the results."""
    model = make_opt(width, layers, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    method = kind(model, rate, rank, seed, steps)
    schedule = optim.lr_scheduler.LambdaLR(method.optimizer, warmed_cosine(steps, _WARMUP))
    start = perf_counter()
    for inputs, targets in stretches(text.train, steps, BATCH, seed):
        loss = mean_loss(model, inputs, targets)
        method.optimizer.zero_grad()
        loss.backward()
        method.optimizer.step()
        schedule.step()
        method.after_step()
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
