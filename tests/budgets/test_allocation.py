"""Test the division of a budget against brute force and the formulas."""

from itertools import product
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.budgets.allocation import AllocationMode, allocate

MODES: list[AllocationMode] = ["topk", "proportional", "neyman"]


@pytest.mark.parametrize("mode", MODES)
def test_no_mode_spends_more_than_the_budget(mode: AllocationMode, generator: torch.Generator) -> None:
    for _ in range(200):
        units = int(torch.randint(1, 9, (), generator=generator))
        scores = torch.rand(units, generator=generator) * (torch.rand(units, generator=generator) > 0.2)
        costs = torch.rand(units, generator=generator) * 5 + 0.1
        budget = float(torch.rand((), generator=generator)) * 50
        shares = allocate(scores, costs, budget, mode)
        assert int(shares.min()) >= 0
        assert float(shares.double() @ costs.double()) <= budget * (1 + 1e-8)


def test_topk_keeps_the_highest_scores_within_the_budget() -> None:
    assert allocate([0.1, 3.0, 2.0, 1.0], 1, 2).tolist() == [0, 1, 1, 0]
    # The second best exceeds the rest of the budget, the third does not.
    assert allocate([3.0, 2.0, 1.0], [4, 3, 1], 5).tolist() == [1, 0, 1]


def test_topk_chooses_among_equal_scores_at_random(generator: torch.Generator) -> None:
    kept = torch.stack([allocate([1.0] * 4, 1, 1, generator=generator) for _ in range(400)]).sum(dim=0)
    # 400 choices among four: 100 each, with a standard deviation of 8.7.
    assert int(kept.sum()) == 400
    assert float((kept - 100).abs().max()) < 5 * 8.7
    assert allocate([1.0] * 4, 1, 1).tolist() == [1, 0, 0, 0]


def test_proportional_shares_differ_from_the_formula_by_less_than_one(generator: torch.Generator) -> None:
    scores = torch.rand(7, generator=generator)
    shares = allocate(scores, 1, 1000, "proportional")
    assert int(shares.sum()) == 1000
    assert float((shares - 1000 * scores / scores.sum()).abs().max()) < 1


def test_neyman_follows_its_formula_for_large_shares() -> None:
    deviations = torch.tensor([1.0, 4.0, 2.5], dtype=torch.float64)
    costs = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    budget = 1e6
    shares = allocate(deviations, costs, budget, "neyman").double()
    ideal = budget * (deviations / costs.sqrt()) / (deviations * costs.sqrt()).sum()
    assert float((shares / ideal - 1).abs().max()) < 1e-4
    variance = (deviations**2 / shares).sum()
    # Cauchy-Schwarz: no division has less variance than (sum a sqrt(c))^2 / budget.
    assert float(variance) == pytest.approx(float((deviations * costs.sqrt()).sum() ** 2 / budget), rel=1e-6)


@pytest.mark.parametrize("budget", range(3, 14))
def test_neyman_finds_the_whole_numbers_with_the_smallest_variance(budget: int) -> None:
    deviations = [0.3, 1.0, 2.2]
    shares = allocate(deviations, 1, budget, "neyman").tolist()

    def variance(division: tuple[int, ...] | list[int]) -> float:
        return sum(a * a / share for a, share in zip(deviations, division, strict=True))

    best = min(variance(d) for d in product(range(1, budget + 1), repeat=3) if sum(d) <= budget)
    assert variance(shares) == pytest.approx(best, rel=1e-12)


def test_neyman_gives_every_unit_one_sample_where_the_budget_allows() -> None:
    assert allocate([1e-6, 1.0, 0.0], 1, 50, "neyman").tolist() == [1, 49, 0]
    assert allocate([1.0, 5.0, 2.0], 1, 2, "neyman").tolist() == [0, 1, 1]


@pytest.mark.parametrize("mode", ["proportional", "neyman"])
def test_units_with_score_zero_get_equal_shares(mode: AllocationMode) -> None:
    assert allocate([0.0, 0.0, 0.0], 1, 9, mode).tolist() == [3, 3, 3]


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_budget_or_no_units_give_no_shares(mode: AllocationMode) -> None:
    assert allocate([1.0, 2.0], 1, 0, mode).tolist() == [0, 0]
    assert allocate([], 1, 10, mode).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([1.0], 1, 1, "best"), "mode must be one of topk, proportional, neyman, not 'best'"),
        (([1.0, 2.0], [1, 2, 3], 1), "there are 2 scores, but 3 costs"),
        (([-1.0], 1, 1), "scores must be finite and at least 0"),
        (([float("nan")], 1, 1), "scores must be finite"),
        (([1.0], 0, 1), "costs must be finite and above 0"),
        (([1.0], 1, -1), "the budget must be finite and at least 0, not -1"),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        allocate(*arguments)
