"""Test that equal requests get equal answers wherever their numbers are in memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from astralora.devices import Session
from astralora.devices.memory import ALIGNMENT, aligned, aligned_array

pytestmark = pytest.mark.processors

N, M, BATCH = 13, 11, 5


def at_offset(tensor: Tensor, offset: int) -> Tensor:
    """Return a copy whose address is ``offset`` float32 values after an aligned one."""
    memory = torch.empty(offset + tensor.numel())
    copy = memory[offset:].view(tensor.shape)
    assert copy.data_ptr() % ALIGNMENT == 4 * offset % ALIGNMENT
    return copy.copy_(tensor)


@pytest.mark.parametrize("kind", ["matvec", "mrr", "mzi", "slm"])
def test_a_session_answers_equally_from_every_address(kind: str, simulated: Any, generator: torch.Generator) -> None:
    width = N if kind != "mzi" else M
    session = simulated(kind, width, M)
    low, high = session.spec.control_range
    settings = torch.empty(3, session.spec.num_controls).uniform_(low, high, generator=generator)
    inputs = torch.rand(BATCH, width, generator=generator)
    one, many = session.apply(settings[0].clone(), inputs), session.query_each(settings, inputs)
    assert one.data_ptr() % ALIGNMENT == many.data_ptr() % ALIGNMENT == 0
    for offset in range(16):
        session.forget()
        assert torch.equal(session.apply(at_offset(settings[0], offset), at_offset(inputs, offset)), one), offset
        assert torch.equal(session.query_each(at_offset(settings, offset), at_offset(inputs, offset)), many), offset
        turned = at_offset(inputs.T.contiguous(), offset).T
        session.forget()
        assert torch.equal(session.apply(settings[0], turned), one), offset


def test_a_numpy_driver_gets_aligned_arrays_and_returns_aligned_answers(
    matrix_device: Any, generator: torch.Generator
) -> None:
    class Unaligned(matrix_device):
        def _query(self, inputs: Any) -> Any:
            assert inputs.__array_interface__["data"][0] % ALIGNMENT == 0
            answer = super()._query(inputs).astype(np.float32)
            memory = np.empty(answer.size + 1, np.float32)
            memory[1:] = answer.ravel()
            return memory[1:].reshape(answer.shape)

    device = Unaligned(N, M)
    device.open()
    device.program(at_offset(torch.empty(N * M).uniform_(-1, 1, generator=generator), 3))
    inputs = torch.rand(BATCH, N, generator=generator)
    answers = [device.query(at_offset(inputs, offset)) for offset in range(16)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert all(answer.data_ptr() % ALIGNMENT == 0 for answer in answers)
    with Session(device) as session:
        session.program(torch.zeros(N * M))
        assert session.query(inputs).data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize("offset", range(ALIGNMENT))
def test_numbers_are_copied_only_where_they_have_to_be(offset: int) -> None:
    memory = torch.arange(256, dtype=torch.uint8)
    part = memory[offset : offset + 100]
    brought, array = aligned(part), aligned_array(part.numpy())
    assert torch.equal(brought, part)
    assert np.array_equal(array, part.numpy())
    assert (brought is part) == (offset == 0)
    assert np.shares_memory(array, part.numpy()) == (offset == 0)
    assert brought.data_ptr() % ALIGNMENT == array.__array_interface__["data"][0] % ALIGNMENT == 0


def test_no_numbers_at_all_are_brought_too() -> None:
    assert aligned(torch.empty(0, 4)).shape == aligned_array(np.empty((0, 4))).shape == (0, 4)
