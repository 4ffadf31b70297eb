"""Test eight-bit states against the rounding errors of their codes."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from astralora.common.errors import ConfigurationError
from astralora.optim.quantization import Bitsandbytes, Blockwise, Plain, Storage, choose_storage


def fake_functional() -> ModuleType:
    """Make a module of the three functions of bitsandbytes.functional that `Bitsandbytes` calls."""

    def create_dynamic_map(signed: bool = True) -> Tensor:
        positive = torch.logspace(-6, 0, 127 if signed else 255)
        negative = [-positive.flip(0), torch.zeros(1)] if signed else []
        return torch.cat([*negative, torch.zeros(1), positive])

    def quantize_blockwise(values: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Any]:
        assert values.is_contiguous()
        assert len(code) == 256
        scales = torch.stack([block.abs().max() for block in values.flatten().split(blocksize)])
        shares = values.flatten() / scales.repeat_interleave(blocksize)[: values.numel()]
        codes = (shares.unsqueeze(1) - code).abs().argmin(dim=1).to(torch.uint8)
        return codes.view(values.shape), SimpleNamespace(absmax=scales)

    def dequantize_blockwise(codes: Tensor, absmax: Tensor, code: Tensor, blocksize: int) -> Tensor:
        return code[codes.long()] * absmax.repeat_interleave(blocksize)[: codes.numel()].view(codes.shape)

    functional = ModuleType("bitsandbytes.functional")
    for function in (create_dynamic_map, quantize_blockwise, dequantize_blockwise):
        setattr(functional, function.__name__, function)
    return functional


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = ModuleType("bitsandbytes")
    package.functional = fake_functional()
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", package.functional)


def round_trip(storage: Storage, value: Tensor, signed: bool) -> Tensor:
    state: dict[str, Any] = {}
    assert storage.get(state, "moment", signed=signed) is None
    storage.put(state, "moment", value, signed=signed)
    found = storage.get(state, "moment", signed=signed)
    assert found is not None
    return found


@pytest.fixture
def values(generator: torch.Generator) -> Tensor:
    """Draw numbers whose sizes differ a thousandfold between blocks; the last block is not full."""
    return torch.randn(3, 300, generator=generator) * torch.tensor([[1e-3], [1.0], [1e3]])


def scale_of_each(values: Tensor) -> Tensor:
    flat = values.flatten()
    return torch.cat([block.abs().max().expand(len(block)) for block in flat.split(256)]).view(values.shape)


def test_signed_numbers_have_an_error_of_at_most_half_a_code(values: Tensor) -> None:
    error = (round_trip(Blockwise(), values, True) - values).abs()
    assert (error <= scale_of_each(values) * (0.5 / 127 + 1e-6)).all()


def test_roots_of_second_moments_have_an_error_of_at_most_half_a_code(values: Tensor) -> None:
    squares = values.square()
    error = (round_trip(Blockwise(), squares, False).sqrt() - squares.sqrt()).abs()
    smallest = squares.sqrt() < 0.5 / 255 * scale_of_each(squares).sqrt()  # these are rounded up to the smallest code
    allowed = torch.where(smallest, 1.0, 0.5) / 255 + 1e-6
    assert (error <= scale_of_each(squares).sqrt() * allowed).all()


def test_a_second_moment_never_becomes_zero() -> None:
    squares = torch.tensor([1e4, 1e-30, 1e-12])
    assert (round_trip(Blockwise(), squares, False) >= squares * (1 - 1e-6)).all()


def test_the_largest_number_of_a_block_and_zero_are_exact() -> None:
    values = torch.tensor([0.0, 0.3, -2.7])
    found = round_trip(Blockwise(), values, True)
    assert torch.equal(found[[0, 2]], values[[0, 2]])
    assert torch.equal(round_trip(Blockwise(), torch.zeros(5), True), torch.zeros(5))


def test_the_codes_take_a_byte_per_number_and_a_scale_per_256() -> None:
    state: dict[str, Any] = {}
    Blockwise().put(state, "moment", torch.ones(2, 150), signed=True)
    Blockwise().put(state, "rows", torch.ones(200), signed=False)
    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        "moment": (torch.int8, (2, 150)),
        "moment_scales": (torch.float32, (2,)),
        "rows": (torch.uint8, (200,)),
        "rows_scales": (torch.float32, (1,)),
    }
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in state.values())


def test_a_scalar_can_be_stored() -> None:
    assert float(round_trip(Blockwise(), torch.tensor(-1.5), True)) == -1.5


def test_plain_storage_returns_the_tensor_itself(values: Tensor) -> None:
    assert round_trip(Plain(), values, True) is values


@pytest.mark.usefixtures("library")
def test_codes_of_bitsandbytes_store_signed_numbers_and_roots(values: Tensor) -> None:
    storage = Bitsandbytes()
    # Neighbouring codes differ by a factor of 10^(6 / 126) or 10^(6 / 254): half of that is 5.6 % or 2.8 %.
    floor = 1e-6 * scale_of_each(values)
    error = (round_trip(storage, values, True) - values).abs()
    assert (error <= 0.06 * values.abs() + floor).all()
    squares = values.square()
    roots = round_trip(storage, squares, False).sqrt()
    assert ((roots - values.abs()).abs() <= 0.03 * values.abs() + floor).all()
    assert (round_trip(storage, torch.tensor([1.0, 1e-30]), False) > 0).all()


def test_bitsandbytes_is_imported_only_if_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    choose_storage.cache_clear()
    assert isinstance(choose_storage(True), Blockwise)
    with pytest.raises(ConfigurationError, match=r"needs bitsandbytes, which is not installed; .* quantization=True"):
        choose_storage("bitsandbytes")


def test_an_unknown_storage_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"quantization must be True, False or 'bitsandbytes', not 'fp4'"):
        choose_storage("fp4")
