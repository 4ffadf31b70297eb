"""Choose from scores which adapters are on, and their ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from ..budgets.allocation import allocate
from ..common.errors import ConfigurationError
from ..devices import derive_generator
from .config import AdapterConfig, family_of
from .scoring import Scores

__all__ = ["Groups", "choose", "search"]

Groups = Literal["combined", "separated", "off"]
"""Whether to rank LoRA and shortcuts together, each family separately, or LoRA only with shortcuts off."""


def choose(
    scores: Mapping[str, float],
    turn_on: float,
    groups: Groups = "combined",
    generator: torch.Generator | None = None,
) -> list[str]:
    """Choose the adapters with the best scores, and return their keys in the order of ``scores``.

    Args:
        scores: scores by key.
        turn_on: share of the adapters, or of each family, to switch on; rounded to at least one unless it is 0.
        groups: whether the families are ranked together.
        generator: generator that orders ties.

    Raises:
        ConfigurationError: ``turn_on`` or ``groups`` is not valid.
    """
    if groups not in get_args(Groups):
        raise ConfigurationError(f"groups must be one of {', '.join(get_args(Groups))}, not {groups!r}")
    if not 0 <= turn_on <= 1:
        raise ConfigurationError(f"turn_on must be at least 0 and at most 1, not {turn_on!r}")
    families = {
        "combined": [list(scores)],
        "separated": [[key for key in scores if _family(key) == family] for family in ("lora", "shortcut")],
        "off": [[key for key in scores if _family(key) == "lora"]],
    }[groups]
    kept: set[str] = set()
    for keys in families:
        count = max(round(turn_on * len(keys)), 1) if keys and turn_on else 0
        shares = allocate([scores[key] for key in keys], 1.0, count, "topk", generator=generator)
        kept |= {key for key, share in zip(keys, shares.tolist(), strict=True) if share}
    return [key for key in scores if key in kept]


def search(
    scores: Scores,
    base: AdapterConfig | None = None,
    *,
    turn_on: float = 0.25,
    rank: int | None = None,
    groups: Groups = "combined",
    mode: Literal["topk", "proportional"] = "topk",
    seed: int = 0,
) -> AdapterConfig:
    """Make a configuration with a table for each layer, in which the best adapters are on and the others off.

    Args:
        scores: scores of all adapters.
        base: configuration whose defaults to keep.
        turn_on: share of the adapters to switch on, 25 % as published; with ``"proportional"``, share of the parameters
            that all adapters have at rank r.
        rank: rank r; the base's default rank unless given.
        groups: whether the families are ranked together.
        mode: ``"topk"`` gives rank r to each of the best adapters. ``"proportional"`` gives every adapter a rank in
            proportion to its score, within the same number of parameters: the budget buys ranks, which cost more in
            wide layers.
        seed: seed of the order of ties.

    Raises:
        ConfigurationError: ``turn_on``, ``rank``, ``groups`` or ``mode`` is not valid, or the scores have no costs.
    """
    base = base or AdapterConfig()
    rank = base.default.r if rank is None else rank
    generator = derive_generator(seed, "search")
    if mode == "topk":
        ranks = dict.fromkeys(choose(scores.values, turn_on, groups, generator), rank)
    elif mode == "proportional":
        ranks = _ranks(scores, turn_on, rank, groups, generator)
    else:
        raise ConfigurationError(f"mode must be topk or proportional, not {mode!r}")
    tables: dict[str, Any] = {}
    for key in scores.values:
        layer, _, name = key.partition(".")
        switch = "disable_adapter" if family_of(name) == "lora" else "disable_projector"
        table = {"r": ranks[key], switch: False} if ranks.get(key) else {switch: True}
        tables.setdefault(layer, {})[name] = table
    # Adapters without a score were off.
    default = {**base.default.model_dump(), "r": rank, "disable_adapter": True, "disable_projector": True}
    return AdapterConfig.parse({"granularity": "layer", "default": default, **tables})


def _ranks(scores: Scores, turn_on: float, rank: int, groups: Groups, generator: torch.Generator) -> dict[str, int]:
    missing = [key for key in scores.values if not scores.costs.get(key)]
    if missing:
        raise ConfigurationError(f"the scores have no cost for a rank of {missing[0]}; score again")
    ranks: dict[str, int] = {}
    candidates = choose(scores.values, 1.0, groups)
    families = [candidates]
    if groups == "separated":
        families = [[key for key in candidates if _family(key) == family] for family in ("lora", "shortcut")]
    for keys in families:
        costs = [scores.costs[key] for key in keys]
        values = [scores.values[key] for key in keys]
        shares = allocate(values, costs, turn_on * rank * sum(costs), "proportional", generator=generator)
        ranks |= dict(zip(keys, shares.tolist(), strict=True))
    return ranks


def _family(key: str) -> str:
    return family_of(key.partition(".")[2])
