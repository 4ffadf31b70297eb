"""From scores to adapters: who is on, and at which rank."""

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
"""Rank LoRA and shortcuts together, each family by itself, or LoRA only, without shortcuts."""


def choose(
    scores: Mapping[str, float],
    turn_on: float,
    groups: Groups = "combined",
    generator: torch.Generator | None = None,
) -> list[str]:
    """The keys of the adapters that deserve to be on, in the order of ``scores``.

    Args:
        scores: by key.
        turn_on: share of the adapters, or of each family, rounded to a whole number, of at least one unless it is 0.
        groups: what is ranked with what.
        generator: draws the order of ties.

    Raises:
        ConfigurationError: no such share or groups.
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
    """A configuration with a table for each layer, in which the best adapters are on and the rest off.

    Args:
        scores: of all adapters.
        base: whose defaults to keep.
        turn_on: share of the adapters, 25 % as published; with ``"proportional"``, of all trained numbers at rank r.
        rank: r; that of the base unless given.
        groups: what is ranked with what.
        mode: ``"topk"`` gives the best adapters rank r each. ``"proportional"`` gives all of them ranks in proportion
            to their scores, for as many trained numbers: units of budget are ranks then, and those of wide layers
            cost more.
        seed: of the order of ties.

    Raises:
        ConfigurationError: no such share, rank, groups or mode, or scores without costs.
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
    # An adapter that was not scored was off.
    default = {**base.default.model_dump(), "r": rank, "disable_adapter": True, "disable_projector": True}
    return AdapterConfig.parse({"granularity": "layer", "default": default, **tables})


def _ranks(scores: Scores, turn_on: float, rank: int, groups: Groups, generator: torch.Generator) -> dict[str, int]:
    missing = [key for key in scores.values if not scores.costs.get(key)]
    if missing:
        raise ConfigurationError(f"the scores do not say what a rank of {missing[0]} costs; score anew")
    ranks: dict[str, int] = {}
    everything = choose(scores.values, 1.0, groups)
    families = [everything]
    if groups == "separated":
        families = [[key for key in everything if _family(key) == family] for family in ("lora", "shortcut")]
    for keys in families:
        costs = [scores.costs[key] for key in keys]
        values = [scores.values[key] for key in keys]
        shares = allocate(values, costs, turn_on * rank * sum(costs), "proportional", generator=generator)
        ranks |= dict(zip(keys, shares.tolist(), strict=True))
    return ranks


def _family(key: str) -> str:
    return family_of(key.partition(".")[2])
