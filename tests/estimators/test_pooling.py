"""Test how pooling reduces the noise and curvature of slopes, and what it leaves unchanged."""

from math import sqrt

import pytest
import torch

from astralora.estimators.pooling import pool_slopes

BOUNDS = (0.0, 3.0)


def measure(
    count: int, step: float, noise: float, generator: torch.Generator, offsets: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """Return one-sided slopes of sin(w + own offset), settings, entries, signs, and the true slopes."""
    w = torch.empty(count, dtype=torch.float64).uniform_(*BOUNDS, generator=generator)
    own = w + offsets * torch.randn(count, dtype=torch.float64, generator=generator)
    signs = torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
    before, after = (
        torch.sin(own + shift) + noise * torch.randn(count, dtype=torch.float64, generator=generator)
        for shift in (0.0, step * signs)
    )
    return (after - before) / (step * signs), w, before, signs, torch.cos(own)


def pool(
    slopes: torch.Tensor, step: float, noise: float, w: torch.Tensor, before: torch.Tensor, signs: torch.Tensor
) -> torch.Tensor:
    variance = 2 * noise**2 / step**2
    return pool_slopes(slopes, variance, w, before, signs, step, BOUNDS, torch.Generator().manual_seed(0))


def test_noise_falls_as_the_group_outnumbers_the_terms(generator: torch.Generator) -> None:
    step, noise = 0.05, 0.02
    slopes, *rest, true = measure(4096, step, noise, generator)
    before, after = ((s - true).std() for s in (slopes, pool(slopes, step, noise, *rest)))
    # 30 groups of about 136, six terms: sqrt(6 / 136) = 0.21 of the noise remains, or a little more.
    assert float(before) == pytest.approx(sqrt(2) * noise / step, rel=0.1)
    assert float(after) < 0.3 * float(before)


def test_the_curvature_error_of_a_noiseless_difference_is_removed(generator: torch.Generator) -> None:
    slopes, *rest, true = measure(8192, 0.05, 0.0, generator)
    before, after = ((s - true).square().mean().sqrt() for s in (slopes, pool(slopes, 0.05, 0.0, *rest)))
    assert float(after) < 0.05 * float(before)


def test_elements_with_different_offsets_are_separated_by_their_entries(generator: torch.Generator) -> None:
    step, noise = 0.05, 0.005
    slopes, *rest, true = measure(8192, step, noise, generator, offsets=0.1)
    before, after = ((s - true).square().mean().sqrt() for s in (slopes, pool(slopes, step, noise, *rest)))
    assert float(after) < 0.5 * float(before)


def test_slopes_that_really_differ_are_kept(generator: torch.Generator) -> None:
    # Half of the elements respond twice as strongly, which neither setting nor entry shows.
    step, noise = 0.05, 1e-4
    slopes, *rest, true = measure(4096, step, noise, generator)
    strong = torch.randint(0, 2, (4096,), generator=generator).double() + 1
    pooled = pool(slopes * strong, step, noise, *rest)
    weak_and_strong = [float((pooled / true)[(strong == kind) & (true.abs() > 0.5)].mean()) for kind in (1, 2)]
    # Averaged, both would be 1.5. The spread within a group, 0.5, leaves an error of 0.5 / sqrt(128) on its terms.
    assert weak_and_strong == [pytest.approx(1.0, abs=0.05), pytest.approx(2.0, abs=0.05)]


def test_the_slopes_of_few_elements_are_unchanged(generator: torch.Generator) -> None:
    slopes, *rest, _ = measure(255, 0.05, 0.1, generator)
    assert torch.equal(pool(slopes, 0.05, 0.1, *rest), slopes)


def test_a_sample_represents_very_many_elements(generator: torch.Generator) -> None:
    step, noise = 0.05, 0.02
    slopes, *rest, true = measure(40_000, step, noise, generator)
    before, after = ((s - true).std() for s in (slopes, pool(slopes, step, noise, *rest)))
    assert float(after) < 0.3 * float(before)
