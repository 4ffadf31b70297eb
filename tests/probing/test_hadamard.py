"""Test Hadamard matrices, their transform and coded signs."""

import pytest
import torch

from astralora.probing.hadamard import CodedSigns, hadamard, hadamard_order, hadamard_transform


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 36, 60, 64, 76, 104, 200, 512])
def test_hadamard_matrices_have_orthogonal_columns_of_ones(order: int) -> None:
    H = hadamard(order).double()
    assert bool((H.abs() == 1).all())
    assert torch.equal(H.T @ H, order * torch.eye(order, dtype=torch.float64))


def test_the_next_order_is_close() -> None:
    assert all(hadamard_order(least) - least < 12 for least in range(1, 513))
    assert [hadamard_order(least) for least in (3, 13, 64, 100, 1000)] == [4, 16, 64, 104, 1000]


@pytest.mark.parametrize("order", [3, 10, 92])
def test_an_impossible_order_is_refused_with_the_next_possible_one(order: int) -> None:
    with pytest.raises(ValueError, match=f"order {order} .* the next order is {hadamard_order(order)}"):
        hadamard(order)


@pytest.mark.parametrize("order", [1, 2, 12, 48, 64, 104, 256])
def test_the_transform_equals_the_product(order: int, generator: torch.Generator) -> None:
    values = torch.randn(3, 2, order, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(hadamard_transform(values), values @ hadamard(order).double())


def test_a_whole_set_of_coded_signs_is_exactly_orthogonal(generator: torch.Generator) -> None:
    signs = CodedSigns(50, generator).take(64).double()
    assert torch.equal(signs.T @ signs, 64 * torch.eye(50, dtype=torch.float64))


def test_more_rows_than_one_set_begin_another_set(generator: torch.Generator) -> None:
    signs = CodedSigns(8, generator).take(20).double()
    first, second, rest = signs.split([8, 8, 4])
    for part in (first, second):
        assert torch.equal(part.T @ part, 8 * torch.eye(8, dtype=torch.float64))
    assert len(rest) == 4
    assert not torch.equal(first, second)


def test_few_coded_signs_are_uncorrelated_on_average(generator: torch.Generator) -> None:
    draws, width = 4000, 6
    signs = torch.stack([CodedSigns(width, generator).take(1)[0] for _ in range(draws)]).double()
    correlation = signs.T @ signs / draws - torch.eye(width)
    assert float(correlation.abs().max()) < 5 / draws**0.5
