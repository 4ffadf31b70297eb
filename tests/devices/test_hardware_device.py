import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from astralora.devices import NotConnected, ProtocolError


@pytest.fixture
def running(bench: Any) -> Any:
    bench.open()
    bench.program(torch.zeros(12))
    return bench


def test_opens_and_closes_once(bench: Any) -> None:
    bench.open()
    bench.open()
    bench.close()
    bench.close()
    assert bench.log == ["open", "close"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_in_the_dtype_of_the_inputs(running: Any, dtype: torch.dtype) -> None:
    running.program(torch.ones(12, dtype=dtype))
    answer = running.query(torch.ones(2, 4, dtype=dtype))
    assert answer.dtype == dtype
    assert torch.equal(answer, torch.full((2, 3), 4.0, dtype=dtype))


def test_a_driver_cannot_change_the_inputs(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def scribble(inputs: Any) -> Any:
        inputs[:] = 0
        return inputs

    monkeypatch.setattr(running, "_query", scribble)
    with pytest.raises(ValueError, match="read-only"):
        running.query(torch.ones(2, 4))


def test_answers_are_copied_from_the_buffer_of_the_driver(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = np.zeros((2, 3), dtype=np.float32)

    def reuse(inputs: Any) -> Any:
        buffer[:] += 1
        return buffer

    monkeypatch.setattr(running, "_query", reuse)
    first = running.query(torch.ones(2, 4))
    running.query(torch.ones(2, 4))
    assert torch.equal(first, torch.ones(2, 3))


def test_refuses_an_answer_that_is_not_numeric(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_query", lambda inputs: None)
    with pytest.raises(ProtocolError, match="returned object; it must return numbers"):
        running.query(torch.ones(2, 4))


def test_refuses_operations_while_closed_or_unprogrammed(bench: Any) -> None:
    with pytest.raises(NotConnected, match="is closed; call open first"):
        bench.program(torch.zeros(12))
    bench.open()
    with pytest.raises(NotConnected, match="no controls are set; call program first"):
        bench.query(torch.zeros(1, 4))
    bench.program(torch.zeros(12))
    bench.close()
    bench.open()
    with pytest.raises(NotConnected, match="no controls are set"):
        bench.query(torch.zeros(1, 4))
    assert "query 1" not in bench.log


def test_one_method_runs_at_a_time(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = np.zeros((1, 3))
    reading = threading.Event()

    def slow(inputs: Any) -> Any:
        scratch[:] = inputs[0, 0]
        reading.set()
        time.sleep(0.05)
        return scratch

    monkeypatch.setattr(running, "_query", slow)
    answers: dict[float, Any] = {}
    threads = [
        threading.Thread(target=lambda value=value: answers.update({value: running.query(torch.full((1, 4), value))}))
        for value in (0.25, 0.5)
    ]
    threads[0].start()
    reading.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert {value: answer[0, 0].item() for value, answer in answers.items()} == {0.25: 0.25, 0.5: 0.5}
