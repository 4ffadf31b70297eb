"""Test overlaps of bases, cuts of singular values, and the detection of settled bases."""

from math import cos, sin, sqrt

import pytest
import torch
from torch import Tensor

import astralora as al
from astralora import ConfigurationError
from astralora.lowrank import BasisWatch, basis_overlap, kept_rank
from astralora.lowrank.bases import align_basis

from .conftest import basis


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return basis(9, 4, generator), basis(7, 4, generator)


def test_the_overlap_of_bases_with_themselves_is_1(pair: tuple[Tensor, Tensor]) -> None:
    assert al.lowrank.basis_overlap(*pair, *pair) == pytest.approx(1, abs=1e-14)


def test_only_unpaired_sign_flips_change_the_overlap(pair: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    U, V = pair
    others = basis(9, 4, generator), basis(7, 4, generator)
    signs = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
    assert basis_overlap(U, V, *others) == pytest.approx(basis_overlap(U * signs, V * signs, *others), abs=1e-14)
    assert basis_overlap(U, V, U * signs, V * signs) == pytest.approx(1)
    assert basis_overlap(U, V, U * signs, V) == pytest.approx(0, abs=1e-14), "two of four are opposite"


def test_the_overlap_is_the_cosine_between_the_products(generator: torch.Generator) -> None:
    first = basis(9, 4, generator), basis(7, 4, generator)
    second = basis(9, 3, generator), basis(7, 3, generator)
    A, B = (U @ V.T for U, V in (first, second))
    assert basis_overlap(*first, *second) == pytest.approx(float((A * B).sum() / A.norm() / B.norm()))


def test_rotating_one_column_reduces_the_overlap_by_the_cosine_of_the_angle() -> None:
    angle = 0.3
    eye, V = torch.eye(5, 2, dtype=torch.float64), torch.eye(4, 2, dtype=torch.float64)
    rotated = eye.clone()
    rotated[:, 0] = torch.tensor([cos(angle), 0, sin(angle), 0, 0])
    assert basis_overlap(eye, V, rotated, V) == pytest.approx((cos(angle) + 1) / 2)


def test_the_overlap_of_aligned_bases_depends_on_their_spaces_alone(generator: torch.Generator) -> None:
    U = basis(9, 4, generator)
    mixed = U @ basis(4, 4, generator)
    torch.testing.assert_close(align_basis(mixed, U), U)
    other = basis(9, 4, generator)
    # The sum of the cosines of the angles between the spaces remains.
    cosines = torch.linalg.svdvals(U.T @ other)
    assert float((U.T @ align_basis(other, U)).trace()) == pytest.approx(float(cosines.sum()))


@pytest.mark.parametrize("place", range(4))
def test_bases_of_different_shapes_are_refused(place: int, pair: tuple[Tensor, Tensor]) -> None:
    factors = [*pair, *pair]
    factors[place] = torch.zeros(5, 3)
    with pytest.raises(ConfigurationError, match="must have the shapes"):
        basis_overlap(*factors)


@pytest.mark.parametrize(
    ("values", "cutoff", "floor", "kept"),
    [
        ([8, 7, 1, 0.5], 0.2, 1, 2),  # 1 < 0.2 * 8
        ([8, 7, 1, 7], 0.2, 1, 2),  # the first small value decides
        ([8, 7, 2, 2], 0.2, 1, 4),
        ([8, 1, 1, 1], 0.2, 1, 2),  # at least half remain
        ([8, 1, 1, 1, 1], 0.2, 1, 3),
        ([8, 1, 1, 1], 0.2, 3, 3),
        ([8, 1, 1, 1], 0.2, 9, 4),  # the floor is above the number of values
        ([8, 7, 1, 0], 0.0, 1, 4),
        ([5, 5, 5, 5], 1.0, 1, 4),  # nothing is below the largest
        ([0, 0], 0.5, 1, 2),
    ],
)
def test_singular_values_are_kept_up_to_the_first_small_one(
    values: list[float], cutoff: float, floor: int, kept: int
) -> None:
    assert kept_rank(torch.tensor(values), cutoff, floor) == kept


def test_a_spectrum_that_is_flat_after_its_first_value_is_halved_down_to_the_floor() -> None:
    s = torch.full((64,), 0.89)
    s[0] = 1
    ranks = [64]
    for _ in range(5):
        ranks.append(kept_rank(s[: ranks[-1]], 0.9, floor=6))
    assert ranks == [64, 32, 16, 8, 6, 6]


def test_bases_have_settled_when_they_stay_twice_in_a_row(generator: torch.Generator) -> None:
    U, V = basis(9, 4, generator), basis(7, 4, generator)
    watch = BasisWatch(0.95)
    assert watch.compare(U, V) is None
    assert watch.compare(U, V) == pytest.approx(1)
    assert not watch.settled
    watch.compare(basis(9, 4, generator), V)
    assert watch.overlap is not None
    assert watch.overlap < 0.95
    watch.compare(U, V)
    for expected in (False, True):
        watch.compare(U, V)
        assert watch.settled is expected


def test_a_watch_continues_from_its_saved_state(generator: torch.Generator) -> None:
    U, V = basis(9, 4, generator), basis(7, 4, generator)
    first, second = BasisWatch(0.95), BasisWatch(0.95)
    first.compare(U, V)
    first.compare(U, V)
    second.load_state_dict(first.state_dict())
    second.compare(U, V)
    assert second.settled
    assert second.overlap == pytest.approx(1)


def test_random_bases_hardly_overlap(generator: torch.Generator) -> None:
    # The overlap is a sum of r^2 products of variance 1 / (m n), divided by r: standard deviation 1 / sqrt(m n).
    overlaps = [basis_overlap(*(basis(rows, 4, generator) for rows in (40, 30, 40, 30))) for _ in range(50)]
    assert float(torch.tensor(overlaps).square().mean().sqrt()) < 1.5 / sqrt(40 * 30)
