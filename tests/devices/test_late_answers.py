"""Test a device that answers late by a number of answers, and that a session cannot open again to lose them."""

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from astralora.devices import DeviceError, DeviceSpec, HardwareDevice, Retry, Session

N = 3


class Line(HardwareDevice):
    """Answer in the order of the requests: answers that nobody has read are returned to later requests."""

    def __init__(self) -> None:
        super().__init__(
            DeviceSpec(
                name="line",
                in_features=N,
                out_features=N,
                num_controls=N * N,
            )
        )
        self.unread: deque[NDArray[Any]] = deque()
        self.break_off = 0  # number of answers that the next request leaves unread

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        pass

    def _program(self, controls: NDArray[Any]) -> None:
        self._break()
        self.matrix = controls.reshape(N, N).copy()
        self.unread.append(np.zeros(N, np.float32))
        self.unread.popleft()

    def _break(self) -> None:
        late, self.break_off = self.break_off, 0
        if late:
            self.unread.extend(inputs(90, late).numpy())
            raise KeyboardInterrupt

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._break()
        for vector in inputs:
            self.unread.append(self.matrix @ vector)
        return np.stack([self.unread.popleft() for _ in inputs])


def controls(seed: int) -> torch.Tensor:
    return torch.rand(N * N, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, N, generator=torch.Generator().manual_seed(1000 + seed))


def go_on(session: Session, seed: int) -> None:
    """Use the session as after an interruption, and fail on a wrong answer."""
    for number in range(6):
        weights, vectors = controls(seed + number // 3), inputs(seed + number)
        try:
            if not session.holds(weights):
                session.program(weights)
            answer = session.query(vectors)
        except DeviceError:
            continue
        torch.testing.assert_close(answer, vectors @ weights.reshape(N, N).T)


@pytest.mark.parametrize("late", range(1, 26))
def test_answers_to_an_earlier_comparison_are_not_taken_for_right(late: int) -> None:
    """A device that stays behind returns to a comparison the answers to an earlier one."""
    device = Line()
    with Session(device, retry=Retry(wait_seconds=0)) as session:
        session.program(controls(1))
        session.query(inputs(1))
        device.break_off = late
        with pytest.raises(KeyboardInterrupt):
            session.program(controls(2))
        for seed in range(20):
            go_on(session, 100 + seed)
