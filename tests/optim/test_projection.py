"""Test the mean and the variance of random projections against theory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from astralora.optim.projection import Projection

DRAWS = 400


def draw(kind: str, rank: int, shape: tuple[int, int], place: int) -> Projection:
    return Projection.draw(kind, rank, shape, 3, place, like=torch.empty(0, dtype=torch.float64))


def round_trips(kind: str, rank: int, matrix: Tensor) -> Tensor:
    n, m = matrix.shape
    projections = [draw(kind, rank, (n, m), place) for place in range(DRAWS)]
    return torch.stack([projection.up(projection.down(matrix)) for projection in projections])


@pytest.fixture
def matrix(generator: torch.Generator) -> Tensor:
    return torch.randn(12, 20, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["gaussian", "orthonormal"])
@pytest.mark.parametrize("wide", [True, False])
def test_compression_and_decompression_are_unbiased(kind: str, wide: bool, matrix: Tensor) -> None:
    matrix = matrix if wide else matrix.mT
    found = round_trips(kind, 4, matrix)
    error = found.mean(dim=0) - matrix
    # Five standard errors for every entry: one in a million lies outside.
    assert (error.abs() < 5 * found.std(dim=0) / DRAWS**0.5).all()


@pytest.mark.parametrize("rank", [3, 6, 12])
@pytest.mark.parametrize(("kind", "variance"), [("gaussian", lambda r: 13 / r), ("orthonormal", lambda r: 12 / r - 1)])
def test_the_relative_variance_depends_on_the_smaller_side(
    kind: str, variance: Callable[[int], float], rank: int, matrix: Tensor
) -> None:
    found = (round_trips(kind, rank, matrix) - matrix).square().sum(dim=(1, 2)) / matrix.square().sum()
    tolerance = 4 * float(found.std()) / DRAWS**0.5 + 1e-12
    assert float(found.mean()) == pytest.approx(variance(rank), abs=tolerance)


def test_orthonormal_projections_are_exact_at_full_rank(matrix: Tensor) -> None:
    projection = draw("orthonormal", 12, (12, 20), 0)
    # The projection has the dtype of the tensor; here, double precision.
    torch.testing.assert_close(projection.up(projection.down(matrix)), matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "orthonormal"])
@pytest.mark.parametrize(("shape", "expected"), [((5, 9), (3, 9)), ((9, 5), (9, 3)), ((5, 5), (5, 3))])
def test_the_smaller_side_is_compressed(kind: str, shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert draw(kind, 3, shape, 0).down(torch.ones(shape, dtype=torch.float64)).shape == expected


def test_each_seed_and_purpose_determine_a_projection() -> None:
    like = torch.empty(0)
    first = Projection.draw("gaussian", 2, (4, 6), 0, "momentum", 1, like=like)
    again = Projection.draw("gaussian", 2, (4, 6), 0, "momentum", 1, like=like)
    others = [
        Projection.draw("gaussian", 2, (4, 6), 1, "momentum", 1, like=like),
        Projection.draw("gaussian", 2, (4, 6), 0, "momentum", 2, like=like),
        Projection.draw("gaussian", 2, (4, 6), 0, "gradients", 1, like=like),
    ]
    assert torch.equal(first.matrix, again.matrix)
    assert not any(torch.equal(first.matrix, other.matrix) for other in others)


def test_other_torch_devices_get_the_projection_of_the_cpu() -> None:
    # "meta" stands for any accelerator: the numbers always come from the generator of the CPU.
    assert Projection.draw("gaussian", 2, (4, 6), 0, like=torch.empty(0, device="meta")).matrix.device.type == "meta"
    half = Projection.draw("gaussian", 2, (4, 6), 0, like=torch.empty(0, dtype=torch.bfloat16)).matrix
    full = Projection.draw("gaussian", 2, (4, 6), 0, like=torch.empty(0)).matrix
    assert torch.equal(half, full.bfloat16())
