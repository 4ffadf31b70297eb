from typing import Any

import numpy as np
import pytest
import torch

from devices import ProtocolError


def test_opens_and_closes_once(bench: Any) -> None:
    bench.open()
    bench.open()
    bench.close()
    bench.close()
    assert bench.log == ["open", "close"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_works_in_the_precision_of_the_caller(bench: Any, dtype: torch.dtype) -> None:
    bench.program(torch.ones(12, dtype=dtype))
    answer = bench.query(torch.ones(2, 4, dtype=dtype))
    assert answer.dtype == dtype
    assert torch.equal(answer, torch.full((2, 3), 4.0, dtype=dtype))


def test_a_driver_cannot_change_the_inputs(bench: Any) -> None:
    def scribble(inputs: Any) -> Any:
        inputs[:] = 0
        return inputs

    bench._query = scribble
    with pytest.raises(ValueError, match="read-only"):
        bench.query(torch.ones(2, 4))


def test_an_answer_outlives_the_buffer_that_the_driver_reuses(bench: Any) -> None:
    buffer = np.zeros((2, 3), dtype=np.float32)

    def reuse(inputs: Any) -> Any:
        buffer[:] += 1
        return buffer

    bench._query = reuse
    first = bench.query(torch.ones(2, 4))
    bench.query(torch.ones(2, 4))
    assert torch.equal(first, torch.ones(2, 3))


def test_an_answer_that_is_not_numbers_is_the_drivers_fault(bench: Any) -> None:
    bench._query = lambda inputs: None
    with pytest.raises(ProtocolError, match="returned object where numbers are due"):
        bench.query(torch.ones(2, 4))
