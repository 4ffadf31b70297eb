"""Test compressed momentum against the dense average."""

import pytest
import torch
from torch import Tensor

from astralora.optim.momentum import compressed_shape, is_compressed, step_momentum
from astralora.optim.projection import Projection

OPTIONS = {"rank": 8, "beta1": 0.9}


def subspace(kind: str, rank: int, shape: tuple[int, int], number: int) -> Projection:
    return Projection.draw(kind, rank, shape, 0, number, like=torch.empty(0, dtype=torch.float64))


def run(updates: list[Tensor], kind: str, rank: int, kappa: int, beta1: float) -> list[Tensor]:
    n, m = updates[0].shape
    compressed = updates[0].new_zeros(compressed_shape(rank, (n, m)))
    averages = []
    for step, update in enumerate(updates, start=1):
        here = subspace(kind, rank, (n, m), (step - 1) // kappa)
        there = subspace(kind, rank, (n, m), step // kappa) if step % kappa == 0 else None
        averaged, compressed = step_momentum(compressed, update, beta1, here, there)
        averages.append(averaged)
    return averages


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 6)])
def test_an_exact_projection_gives_the_dense_average(shape: tuple[int, int], generator: torch.Generator) -> None:
    updates = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(12)]
    found = run(updates, "orthonormal", 6, kappa=5, beta1=0.8)  # the subspace moves twice
    average = torch.zeros(shape, dtype=torch.float64)
    for update, averaged in zip(updates, found, strict=True):
        average = 0.8 * average + 0.2 * update
        torch.testing.assert_close(averaged, average, rtol=1e-11, atol=1e-11)


def test_the_newest_update_is_not_compressed(generator: torch.Generator) -> None:
    update = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    (averaged,) = run([update], "gaussian", 2, kappa=5, beta1=0.8)
    torch.testing.assert_close(averaged, 0.2 * update)


def test_a_move_projects_the_momentum_into_the_new_subspace(generator: torch.Generator) -> None:
    old, new = (subspace("gaussian", 3, (6, 9), number) for number in range(2))
    compressed, update = torch.randn(3, 9, generator=generator, dtype=torch.float64), torch.zeros(6, 9).double()
    averaged, moved = step_momentum(compressed, update, 0.8, old, new)
    torch.testing.assert_close(averaged, 0.8 * old.matrix.mT @ compressed)
    torch.testing.assert_close(moved, 0.8 * new.matrix @ (old.matrix.mT @ compressed))


def test_the_newest_update_is_stored_in_the_new_subspace(generator: torch.Generator) -> None:
    old, new = (subspace("gaussian", 3, (6, 9), number) for number in range(2))
    update = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    _, after = step_momentum(torch.zeros(3, 9).double(), update, 0.8, old, new)
    torch.testing.assert_close(after, 0.2 * new.matrix @ update)


@pytest.mark.parametrize("kind", ["gaussian", "orthonormal"])
def test_the_average_is_unbiased_across_moves(kind: str, generator: torch.Generator) -> None:
    draws, beta1, kappa = 1500, 0.7, 2
    updates = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(5)]
    average = torch.zeros(4, 6, dtype=torch.float64)
    for update in updates:
        average = beta1 * average + (1 - beta1) * update
    found = []
    for draw in range(draws):
        compressed = torch.zeros(2, 6, dtype=torch.float64)
        for step, update in enumerate(updates, start=1):
            here, there = (subspace(kind, 2, (4, 6), 10 * draw + number // kappa) for number in (step - 1, step))
            averaged, compressed = step_momentum(compressed, update, beta1, here, there if step % kappa == 0 else None)
        found.append(averaged)
    stacked = torch.stack(found)
    assert ((stacked.mean(dim=0) - average).abs() < 5 * stacked.std(dim=0) / draws**0.5).all()


@pytest.mark.parametrize(
    ("shape", "compressed"),
    [
        ((64, 64), True),
        ((256, 64), True),
        ((64, 256), True),
        ((257, 64), False),  # more than four times as long as wide
        ((8, 8), True),
        ((7, 8), False),  # less than the rank
        ((64,), False),
        ((16, 16, 3, 3), False),
        ((), False),
    ],
)
def test_only_matrices_of_sufficient_rank_and_limited_aspect_ratio_are_compressed(
    shape: tuple[int, ...], compressed: bool
) -> None:
    assert is_compressed(shape, OPTIONS) == compressed


@pytest.mark.parametrize("options", [{"rank": None}, {"beta1": None}, {"beta1": 0.0}])
def test_no_momentum_is_compressed_without_a_rank_or_beta1(options: dict[str, object]) -> None:
    assert not is_compressed((64, 64), {**OPTIONS, **options})
