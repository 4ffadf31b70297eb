"""Overlaps of bases, and cuts, against what they must be."""

from math import cos, sin, sqrt

import pytest
import torch
from torch import Tensor

import astralora as al
from astralora import ConfigurationError
from astralora.lowrank import BasisWatch, basis_overlap, kept_rank
from astralora.lowrank.bases import in_the_frame_of


def basis(rows: int, rank: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64, generator=generator))[0]


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return basis(9, 4, generator), basis(7, 4, generator)


def test_the_overlap_of_bases_with_themselves_is_1(pair: tuple[Tensor, Tensor]) -> None:
    assert al.lowrank.basis_overlap(*pair, *pair) == pytest.approx(1, abs=1e-14)


def test_paired_sign_flips_change_nothing_and_single_ones_do(
    pair: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    U, V = pair
    others = basis(9, 4, generator), basis(7, 4, generator)
    signs = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
    assert basis_overlap(U, V, *others) == pytest.approx(basis_overlap(U * signs, V * signs, *others), abs=1e-14)
    assert basis_overlap(U, V, U * signs, V * signs) == pytest.approx(1)
    assert basis_overlap(U, V, U * signs, V) == pytest.approx(0, abs=1e-14), "two of four are opposite"


def test_the_overlap_is_the_cosine_of_the_products_that_it_does_not_form(generator: torch.Generator) -> None:
    first = basis(9, 4, generator), basis(7, 4, generator)
    second = basis(9, 3, generator), basis(7, 3, generator)
    A, B = (U @ V.T for U, V in (first, second))
    assert basis_overlap(*first, *second) == pytest.approx(float((A * B).sum() / A.norm() / B.norm()))


def test_a_rotation_by_an_angle_is_seen_as_its_cosine() -> None:
    angle = 0.3
    eye, V = torch.eye(5, 2, dtype=torch.float64), torch.eye(4, 2, dtype=torch.float64)
    turned = eye.clone()
    turned[:, 0] = torch.tensor([cos(angle), 0, sin(angle), 0, 0])
    assert basis_overlap(eye, V, turned, V) == pytest.approx((cos(angle) + 1) / 2)


def test_in_each_others_frame_only_the_space_counts(generator: torch.Generator) -> None:
    U = basis(9, 4, generator)
    mixed = U @ basis(4, 4, generator)
    torch.testing.assert_close(in_the_frame_of(mixed, U), U)
    other = basis(9, 4, generator)
    # What is left are the cosines of the angles between the spaces.
    cosines = torch.linalg.svdvals(U.T @ other)
    assert float((U.T @ in_the_frame_of(other, U)).trace()) == pytest.approx(float(cosines.sum()))


@pytest.mark.parametrize("place", range(4))
def test_bases_that_do_not_belong_together_are_refused(place: int, pair: tuple[Tensor, Tensor]) -> None:
    factors = [*pair, *pair]
    factors[place] = torch.zeros(5, 3)
    with pytest.raises(ConfigurationError, match="must have the shapes"):
        basis_overlap(*factors)


@pytest.mark.parametrize(
    ("values", "cutoff", "floor", "kept"),
    [
        ([8, 7, 1, 0.5], 0.2, 1, 2),  # 1 < 0.2 * 8
        ([8, 7, 1, 7], 0.2, 1, 2),  # the first decides
        ([8, 7, 2, 2], 0.2, 1, 4),
        ([8, 1, 1, 1], 0.2, 1, 2),  # no more than half
        ([8, 1, 1, 1, 1], 0.2, 1, 3),
        ([8, 1, 1, 1], 0.2, 3, 3),
        ([8, 1, 1, 1], 0.2, 9, 4),  # there are no more
        ([8, 7, 1, 0], 0.0, 1, 4),
        ([5, 5, 5, 5], 1.0, 1, 4),  # nothing is below the largest
        ([0, 0], 0.5, 1, 2),
    ],
)
def test_what_is_kept_ends_at_the_first_that_is_small(
    values: list[float], cutoff: float, floor: int, kept: int
) -> None:
    assert kept_rank(torch.tensor(values), cutoff, floor) == kept


def test_a_spectrum_that_is_flat_behind_its_first_value_is_halved_down_to_the_floor() -> None:
    s = torch.full((64,), 0.89)
    s[0] = 1
    ranks = [64]
    for _ in range(5):
        ranks.append(kept_rank(s[: ranks[-1]], 0.9, floor=6))
    assert ranks == [64, 32, 16, 8, 6, 6]


def test_bases_have_settled_when_they_stay_twice_in_a_row(generator: torch.Generator) -> None:
    U, V = basis(9, 4, generator), basis(7, 4, generator)
    watch = BasisWatch(0.95)
    assert watch.look(U, V) is None
    assert watch.look(U, V) == pytest.approx(1)
    assert not watch.settled
    watch.look(basis(9, 4, generator), V)
    assert watch.overlap is not None
    assert watch.overlap < 0.95
    watch.look(U, V)
    for expected in (False, True):
        watch.look(U, V)
        assert watch.settled is expected


def test_a_watch_goes_on_from_its_saved_state(generator: torch.Generator) -> None:
    U, V = basis(9, 4, generator), basis(7, 4, generator)
    first, second = BasisWatch(0.95), BasisWatch(0.95)
    first.look(U, V)
    first.look(U, V)
    second.load_state_dict(first.state_dict())
    second.look(U, V)
    assert second.settled
    assert second.overlap == pytest.approx(1)


def test_the_products_themselves_show_that_random_bases_hardly_overlap(generator: torch.Generator) -> None:
    # sum of r^2 products of entries of variance 1 / (m n), over r: standard deviation 1 / sqrt(m n).
    overlaps = [basis_overlap(*(basis(rows, 4, generator) for rows in (40, 30, 40, 30))) for _ in range(50)]
    assert float(torch.tensor(overlaps).square().mean().sqrt()) < 1.5 / sqrt(40 * 30)
