"""Compare a few chosen adapters with LoRA everywhere, on a small language model and at the same budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from time import perf_counter

from torch import nn, optim

from ..adapters.units import units_of
from ..common.errors import ConfigurationError
from ..common.extras import require
from ..tasks import Text, sources, topics
from .adapter_methods import ADAPTER_METHODS, AdapterMethod, Batch, Budget
from .language import (
    BATCH,
    TUNING_SEED,
    Record,
    check_width,
    evaluate,
    make_opt,
    mean_loss,
    stretches,
    tuned_runs,
    warmed_cosine,
)

__all__ = ["adapters"]

_WARMUP = 20
_PRETRAINING_RATE = 4e-3
_PRETRAINING_WARMUP = 100


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
    """Adapt a small OPT, pretrained on English, to Python source code byte by byte with each method.

    For each seed, a complete model is trained on the training part of `topics` and frozen. Every method then adapts
    this model to `sources`, on the same batches. The learning rate of Adam is chosen by `tuned_runs`.

    Args:
        methods: names from `ADAPTER_METHODS`.
        seeds: seeds of models, adapters and data order.
        steps: steps of adaptation.
        pretraining: steps of pretraining.
        width: width of the model, a multiple of 16.
        layers: number of layers of the model.
        rank: rank of an adapter with the stream's width on both sides, a multiple of 5; see `Budget`.
        turn_on: share of the adapters that are enabled; 25 % as published.
        listener: called with every record and the number of records in all.

    Returns:
        Flat records of part ("tuning" or "run"), method, seed, rate, rank, steps, base_loss, validation_loss and
        test_loss in nats per byte, trained_parameters and adapters_on (largest numbers at any step), adapters (all
        adapters), adapters_used (adapters that were enabled at some step) and seconds_per_step, scores included.

    Raises:
        ConfigurationError: transformers or peft is not installed, or a method or size is invalid.
    """
    check_width(width)
    if rank < 1 or rank % 5:
        raise ConfigurationError(f"the rank must be a multiple of 5, so that all adapters cost the same; {rank} is not")
    if not 0 < turn_on <= 1:
        raise ConfigurationError(f"turn_on must be more than 0 and at most 1, not {turn_on!r}")
    kinds = {name: ADAPTER_METHODS.find(name) for name in methods}
    for library in ("transformers", "peft"):
        require(library, "'astralora bench adapters'", extra="lowrank")
    text = sources()
    bases: dict[int, nn.Module] = {}

    def measure(name: str, rate: float, seed: int) -> Record:
        if seed not in bases:
            bases[seed] = _pretrained(width, layers, pretraining, seed)
        found = _adapted(kinds[name], deepcopy(bases[seed]), text, rate, (rank, turn_on), steps, seed)
        return {"rank": rank, **found}

    return tuned_runs({name: kind.rates for name, kind in kinds.items()}, seeds, measure, listener)


def _pretrained(width: int, layers: int, steps: int, seed: int) -> nn.Module:
    """Train a complete model on English."""
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
    budget_options: tuple[int, float],
    steps: int,
    seed: int,
) -> Record:
    """Adapt a model with one method, and return the results."""
    base_loss = evaluate(model, text.test)
    budget = Budget.of(model, *budget_options)
    start = perf_counter()
    method = kind(model, budget, _scored_batches(text, seed), steps, seed)
    units = method.adapted.units
    # A disabled adapter has no gradient, so the optimizer changes neither it nor its state.
    optimizer = optim.Adam([parameter for unit in units for parameter in unit.parameters()], lr=rate)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, warmed_cosine(steps, _WARMUP))
    trained, most_enabled, used = 0, 0, set[str]()
    for step, (inputs, targets) in enumerate(stretches(text.train, steps, BATCH, seed)):
        method.before_step(step)
        enabled = units_of(units, enabled=True)
        trained, most_enabled = max(trained, sum(unit.cost for unit in enabled)), max(most_enabled, len(enabled))
        used |= {unit.key for unit in enabled}
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
        "adapters_on": most_enabled,
        "adapters": len(units),
        "adapters_used": len(used),
        "seconds_per_step": seconds,
    }


def _scored_batches(text: Text, seed: int) -> Iterator[Batch]:
    """Yield training batches for scores; the training steps use other batches."""
    while True:
        seed += TUNING_SEED
        for inputs, targets in stretches(text.train, 1000, BATCH, seed):
            yield {"inputs": inputs, "targets": targets}
