"""Divide a budget among units."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from ..common.errors import ConfigurationError

__all__ = ["AllocationMode", "allocate"]

AllocationMode = Literal["topk", "proportional", "neyman"]

# Relative tolerance, because rounding in a sum of decimal prices must not count as exceeding the budget.
_ROUNDING = 1e-9


def allocate(
    scores: Tensor | Sequence[float],
    costs: Tensor | Sequence[float] | float,
    budget: float,
    mode: AllocationMode = "topk",
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Divide a budget among units into whole shares S_l with sum S_l cost_l <= budget.

    ``"topk"``: S_l is 1 for the units with the highest scores, as many as the budget pays for, and 0 for the others.

    ``"proportional"``: S_l is proportional to the score, rounded by the largest remainders.

    ``"neyman"``: the score a_l is the standard deviation of one sample, and S samples have the variance a_l^2 / S. Then

        S_l = budget (a_l / sqrt(cost_l)) / sum_k a_k sqrt(cost_k)

    minimises sum a_l^2 / S_l (Neyman 1934). For a zero-order estimate of a gradient of P_l controls,
    a_l = ||g_l|| sqrt(P_l + 1). A unit with a score above 0 gets at least one sample if the budget is sufficient,
    because it would have no estimate without samples. A unit with score 0 gets none.

    Args:
        scores: score of each unit, (units,), finite and at least 0.
        costs: cost of one share, for each unit or one number for all units, above 0, in the unit of the budget.
        budget: largest total cost.
        mode: one of the modes above.
        generator: random stream for the order of units with equal scores; None to prefer earlier units.

    Returns:
        Share of each unit, (units,), int64. If all scores are 0, ``"proportional"`` and ``"neyman"`` give all units
        equal shares.

    Raises:
        ConfigurationError: a score, a cost, the budget or the mode is not valid.
    """
    weights = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().flatten()
    prices = torch.as_tensor(costs, dtype=torch.float64).detach().cpu().flatten()
    if mode not in get_args(AllocationMode):
        raise ConfigurationError(f"mode must be one of {', '.join(get_args(AllocationMode))}, not {mode!r}")
    if len(prices) not in (1, len(weights)):
        raise ConfigurationError(f"there are {len(weights)} scores, but {len(prices)} costs")
    prices = prices.expand(len(weights))
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ConfigurationError("scores must be finite and at least 0")
    if not bool(torch.isfinite(prices).all()) or bool((prices <= 0).any()):
        raise ConfigurationError("costs must be finite and above 0")
    if not isfinite(budget) or budget < 0:
        raise ConfigurationError(f"the budget must be finite and at least 0, not {budget}")
    order = torch.arange(len(weights)) if generator is None else torch.randperm(len(weights), generator=generator)
    budget *= 1 + _ROUNDING
    shares = _DIVISIONS[mode](weights[order].tolist(), prices[order].tolist(), budget)
    result = torch.zeros(len(weights), dtype=torch.int64)
    result[order] = torch.tensor(shares, dtype=torch.int64)
    return result


def _topk(scores: list[float], costs: list[float], budget: float) -> list[int]:
    shares, left = [0] * len(scores), budget
    for unit in sorted(range(len(scores)), key=lambda unit: -scores[unit]):
        if costs[unit] <= left:
            shares[unit] = 1
            left -= costs[unit]
    return shares


def _proportional(scores: list[float], costs: list[float], budget: float) -> list[int]:
    weights = scores if any(scores) else [1.0] * len(scores)
    total = sum(weight * cost for weight, cost in zip(weights, costs, strict=True))
    ideal = [budget * weight / total for weight in weights]
    shares = [int(share) for share in ideal]
    left = budget - sum(share * cost for share, cost in zip(shares, costs, strict=True))
    for unit in sorted(range(len(shares)), key=lambda unit: shares[unit] - ideal[unit]):
        if ideal[unit] > shares[unit] and costs[unit] <= left:
            shares[unit] += 1
            left -= costs[unit]
    return shares


def _neyman(scores: list[float], costs: list[float], budget: float) -> list[int]:
    deviations = scores if any(scores) else [cost**0.5 for cost in costs]
    wanting = [unit for unit, deviation in enumerate(deviations) if deviation > 0]
    shares = [0] * len(scores)
    # First, each unit gets one sample, in the order of the removed variance divided by the cost.
    for unit in sorted(wanting, key=lambda unit: -(deviations[unit] ** 2) / costs[unit]):
        if costs[unit] <= budget:
            shares[unit] = 1
            budget -= costs[unit]
    if any(shares[unit] == 0 for unit in wanting):
        return shares
    # Then the formula divides the rest among the units that get more than one sample by it.
    above = wanting
    while above:
        total = sum(deviations[unit] * costs[unit] ** 0.5 for unit in above)
        whole = budget + sum(costs[unit] for unit in above)
        ideal = {unit: whole * deviations[unit] / costs[unit] ** 0.5 / total for unit in above}
        if all(ideal[unit] > 1 for unit in above):
            break
        above = [unit for unit in above if ideal[unit] > 1]
    for unit in above:
        shares[unit] = int(ideal[unit])
        budget -= (shares[unit] - 1) * costs[unit]
    # Then the rest is used one sample at a time, where it removes the largest variance for its cost.
    while True:
        best, gain = -1, -inf
        for unit in wanting:
            lowered = deviations[unit] ** 2 / (shares[unit] * (shares[unit] + 1)) / costs[unit]
            if costs[unit] <= budget and lowered > gain:
                best, gain = unit, lowered
        if best < 0:
            return shares
        shares[best] += 1
        budget -= costs[best]


_DIVISIONS = {"topk": _topk, "proportional": _proportional, "neyman": _neyman}
