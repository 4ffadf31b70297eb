"""Test that repetitions and comparisons after faults never exceed a budget."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from astralora.devices import (
    Budget,
    BudgetExceeded,
    Device,
    DeviceError,
    DeviceSpec,
    DeviceTimeout,
    HardwareDevice,
    NotConnected,
    ProgramsMany,
    ProtocolError,
    Resends,
    Retry,
    Session,
    TiledDevice,
)

FAULTS = (DeviceTimeout, ProtocolError, NotConnected)


class Unreliable(HardwareDevice):
    """Multiply by a matrix, count the operations, and fail with a given probability."""

    def __init__(self, chance: float, seed: int, **spec: Any) -> None:
        super().__init__(
            DeviceSpec(
                name="unreliable",
                in_features=3,
                out_features=2,
                num_controls=6,
                linear=True,
                input_range=(-1, 1),
                **spec,
            )
        )
        self.programs = self.vectors = 0
        self._chance, self._random = chance, random.Random(seed)

    def _open(self) -> None:
        self._fail()

    def _close(self) -> None:
        pass

    def _program(self, controls: NDArray[Any]) -> None:
        self.programs += 1
        self._fail()
        self.weights = np.array(controls, dtype=float).reshape(2, 3)

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self.vectors += len(inputs)
        self._fail()
        return np.array(inputs @ self.weights.T)

    def _fail(self) -> None:
        if self._random.random() < self._chance:
            raise self._random.choice(FAULTS)("by chance")


class Numbered(Unreliable):
    """Number the requests; the newest answer is never lost for good."""

    capabilities = (Resends,)

    def resend(self) -> Tensor:
        raise DeviceTimeout("lost again")


class Sequencer(Unreliable):
    """Run many settings in one call."""

    capabilities = (ProgramsMany,)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        self.programs += len(controls)
        self.vectors += len(controls) * len(inputs)
        self._fail()
        self.weights = controls[-1].numpy().reshape(2, 3)
        self._is_programmed = True
        return torch.einsum("koi,bi->kbo", controls.view(-1, 2, 3), inputs)


def run(seed: int, make: Any) -> tuple[int, int]:
    """Use a session with a small budget until it is spent; return the number of refusals and of right answers."""
    dice = random.Random(seed)
    spec = {"idempotent_program": dice.random() < 0.7, "max_batch": dice.choice([None, 1, 2, 3])}
    chips: list[Unreliable] = []

    def chip() -> Unreliable:
        chips.append(make(dice.choice([0.01, 0.05, 0.2]), dice.randrange(1 << 30), **spec))
        return chips[-1]

    tiled = dice.random() < 0.4
    device: Device = TiledDevice([chip() for _ in range(4)], 6, 4, threads=dice.random() < 0.5) if tiled else chip()
    inputs, outputs = (6, 4) if tiled else (3, 2)
    programs, most = dice.randrange(2, 30), dice.randrange(4, 80)
    budget = Budget(programs=programs, vectors=most)
    retry = Retry(attempts=4, wait_seconds=0)
    generator = torch.Generator().manual_seed(seed)
    refused = right = 0
    session = Session(device, budget, retry)
    weights: Tensor | None = None  # None after an error, which leaves the controls unknown
    for _ in range(40):
        settings = torch.rand(dice.randrange(1, 4), device.spec.num_controls, generator=generator)
        vectors = torch.rand(dice.randrange(1, 7), inputs, generator=generator)
        try:
            session.open()
            if dice.random() < 0.3:
                weights, new = None, settings[0]
                session.program(new)
                weights = new
            elif dice.random() < 0.5 and weights is not None:
                answer = session.query(vectors)
                right += _is_right(answer, weights, vectors, tiled)
            else:
                weights = None
                for each, setting in zip(session.query_each(settings, vectors), settings, strict=True):
                    right += _is_right(each, setting, vectors, tiled)
                weights = settings[-1]
        except BudgetExceeded:
            refused += 1
        except DeviceError:
            pass
        spent = session.usage
        assert spent.programs <= programs, "the session has counted more programs than the budget"
        assert spent.vectors <= most, "the session has counted more vectors than the budget"
        assert sum(chip.programs for chip in chips) <= spent.programs, "a program was not counted"
        assert sum(chip.vectors for chip in chips) <= spent.vectors, "a vector was not counted"
    assert outputs == device.spec.out_features
    return refused, right


def _is_right(answer: Tensor, controls: Tensor, vectors: Tensor, tiled: bool) -> bool:
    parts = controls.view(-1, 2, 3)
    whole = torch.cat([torch.cat([parts[0], parts[1]], 1), torch.cat([parts[2], parts[3]], 1)]) if tiled else parts[0]
    torch.testing.assert_close(answer, vectors @ whole.T)
    return True


@pytest.mark.parametrize("make", [Unreliable, Numbered, Sequencer])
def test_no_session_spends_more_than_its_budget(make: Any) -> None:
    results = [run(seed, make) for seed in range(60)]
    assert min(map(sum, zip(*results, strict=True))) > 60, "some operations are refused, and some carried out"


def test_a_retry_leaves_enough_for_the_later_parts() -> None:
    chip = Unreliable(0.0, 0, idempotent_program=True, max_batch=1)
    with Session(chip, Budget(vectors=4), Retry(attempts=3, wait_seconds=0)) as session:
        session.program(torch.ones(6))
        calls = iter([None, DeviceTimeout("late")])

        def fail() -> None:
            error = next(calls, None)
            if error is not None:
                raise error

        chip._fail = fail  # type: ignore[method-assign]  # noqa: SLF001
        with pytest.raises(BudgetExceeded, match="vectors of a budget of 4"):
            session.query(torch.ones(4, 3))
        assert chip.vectors == session.usage.vectors <= 4
