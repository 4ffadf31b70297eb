"""Test that the checks find answers of another vector, another query or other controls, and accept sound devices."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import astralora.devices as d
from astralora.devices import Device, DeviceSpec, HardwareDevice
from astralora.devices.testing import CHECKS, check_device

N = 6


class Exact:
    """Multiply by a matrix in float32, without noise."""

    spec = DeviceSpec(name="exact", in_features=N, out_features=N, num_controls=N * N, linear=True)

    def open(self) -> None: ...

    def close(self) -> None: ...

    def program(self, controls: Tensor) -> None:
        self.matrix = controls.reshape(N, N).clone()

    def query(self, inputs: Tensor) -> Tensor:
        return inputs @ self.matrix.to(inputs).T


class Noisy(HardwareDevice):
    """Multiply by a matrix with noise and converters, at most 20 vectors at a time."""

    def __init__(self, noise_std: float = 0.05, claimed: float | None = None, **spec: Any) -> None:
        bounds: dict[str, Any] = {"input_range": (-1.0, 1.0), "control_range": (-1.0, 1.0)}
        claims = {**bounds, "max_batch": 20, "noise_std": noise_std if claimed is None else claimed, **spec}
        super().__init__(DeviceSpec(name="noisy", in_features=N, out_features=N, num_controls=N * N, **claims))
        self.noise_std = noise_std
        self.random = np.random.default_rng(0)

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _program(self, controls: NDArray[Any]) -> None:
        self.matrix = controls.reshape(N, N).copy()

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = inputs @ self.matrix.T
        return answers + self.noise_std * self.random.standard_normal(answers.shape)


def simulated(kind: str, impairments: str = "lab", **options: Any) -> Callable[[int], Device]:
    def make(seed: int) -> Device:
        return d.make_device(kind, in_features=8, out_features=8, impairments=impairments, seed=seed, **options)

    return make


SOUND: dict[str, Callable[[int], Device]] = {
    "exact": lambda _: Exact(),
    "numpy": lambda _: Noisy(),
    "very noisy": lambda _: Noisy(noise_std=0.5),
    "mzi": simulated("mzi"),
    "mrr": simulated("mrr"),
    "slm": simulated("slm"),
    "harsh": simulated("slm", "harsh"),
    "tiled": simulated("tiled", chip="slm", tile=4),
}
"""Functions that make a sound device of a seed."""


class Faulty:
    """Return the answers of a sound device wrongly."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.previous: Tensor | None = None
        self.is_new = False

    @property
    def spec(self) -> DeviceSpec:
        return self.device.spec

    def open(self) -> None:
        self.device.open()

    def close(self) -> None:
        self.device.close()

    def program(self, controls: Tensor) -> None:
        self.device.program(controls)
        self.is_new = True

    def query(self, inputs: Tensor) -> Tensor:
        answer = self.change(self.device.query(inputs).clone())
        self.is_new = False
        return answer

    def change(self, answers: Tensor) -> Tensor:
        return answers

    def late(self, answers: Tensor, last: Tensor) -> Tensor:
        """Store a value, and return the value that was stored before; the first time, return zeros."""
        previous, self.previous = self.previous, last.clone()
        return torch.zeros_like(answers) if previous is None else previous


FAULTS: dict[type[Faulty], tuple[str, str]] = {}
"""The check that finds each fault, and what it says."""


def found_by(check: str, sentence: str) -> Callable[[type[Faulty]], type[Faulty]]:
    def register(driver: type[Faulty]) -> type[Faulty]:
        FAULTS[driver] = check, sentence
        return driver

    return register


@found_by(
    "row_order", r"row 1 of a query of 3 vectors holds the answer to vector 0, like row 0: .* vector 1 is missing"
)
class Duplicates(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        if len(answers) > 2:
            answers[1] = answers[0]
        return answers


@found_by("row_order", "in a query of 4 vectors, the answers to the vectors 1 and 3 are swapped")
class Swaps(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        return answers[[0, 3, 2, 1, *range(4, len(answers))]] if len(answers) > 3 else answers


@found_by("row_order", "in a query of 2 vectors, the answers to the vectors 0 and 1 are swapped")
class SwapsPairs(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        return answers.flip(0) if len(answers) == 2 else answers


@found_by("row_order", "in a query of 4 vectors, the answers are in reverse order")
class Reverses(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        return answers.flip(0) if len(answers) > 3 else answers


@found_by("row_order", "in a query of 3 vectors, the answers are rotated: row 0 holds the answer to vector 1")
class Rotates(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        return answers.roll(-1, 0) if len(answers) > 2 else answers


@found_by("row_order", "in a query of 17 vectors, the answers to the vectors 2 and 11 are swapped")
class SwapsLargeBatches(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        if len(answers) > 10:
            answers[[2, 11]] = answers[[11, 2]]
        return answers


@found_by("row_order", r"row 2 of a query of 3 vectors holds the answer to vector 1, like row 1: .* 2 is missing")
class RepeatsInOddBatches(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        if len(answers) % 2 and len(answers) > 1:
            answers[-1] = answers[-2]
        return answers


@found_by("row_order", "row 2 of a query of 3 vectors has a different answer than if its vector is passed alone")
class LosesTheLastOfOddBatches(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        if len(answers) % 2 and len(answers) > 1:
            answers[-1] = 7.0 + answers.abs().max()
        return answers


@found_by("row_order", "a query of [0-9]+ vectors returns the answers to the query before it: the answers are stale")
class StaleBatches(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        last = self.previous
        if len(answers) > 1:
            self.previous = answers.clone()
        return last if len(answers) > 1 and last is not None and len(last) == len(answers) else answers


@found_by(
    "row_order", "in a query of 3 vectors, the answers are shifted by one row: row 1 holds the answer to vector 0"
)
class StaleRowsOfBatches(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        if len(answers) < 3:
            return answers
        first = self.late(answers[:1], answers[-1:])
        return torch.cat([first, answers[:-1]])


@found_by("fresh_answers", "a query returns the answer to the query before it: the answer is stale")
class StaleRows(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        first = self.late(answers[:1], answers[-1:])
        return torch.cat([first, answers[:-1]])


@found_by("fresh_answers", "a query returns the answer to the query before it: the answer is stale")
class Stale(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        if self.previous is not None and len(self.previous) != len(answers):
            self.previous = None
        return self.late(answers, answers)


@found_by("fresh_answers", "a query returns the answer to the query 2 queries before it: the answer is stale")
class StaleByTwo(Faulty):
    older: Tensor | None = None

    def change(self, answers: Tensor) -> Tensor:
        before, self.older, self.previous = self.older, self.previous, answers
        return answers if before is None or before.shape != answers.shape else before


@found_by("fresh_answers", "the first answer after a program is the answer to an earlier query: it is stale")
class StaleAfterAProgram(Faulty):
    def change(self, answers: Tensor) -> Tensor:
        previous, self.previous = self.previous, answers
        return previous if self.is_new and previous is not None and previous.shape == answers.shape else answers


@found_by("fresh_answers", "the first answer after a program is the answer at the previous controls: it is stale")
class ProgramsAfterTheNextQuery(Faulty):
    waiting: Tensor | None = None
    has_controls = False

    def close(self) -> None:
        self.waiting, self.has_controls = None, False
        super().close()

    def program(self, controls: Tensor) -> None:
        self.waiting = controls.clone()
        if not self.has_controls:
            self.device.program(controls)
            self.has_controls = True

    def query(self, inputs: Tensor) -> Tensor:
        answer = self.device.query(inputs)
        if self.waiting is not None:
            self.device.program(self.waiting)
            self.waiting = None
        return answer


@found_by("fresh_answers", "an answer changed when the next query was made: it is a view of a buffer")
class SharesItsBuffer(Faulty):
    buffer = torch.zeros(0)

    def change(self, answers: Tensor) -> Tensor:
        if len(self.buffer) < len(answers) or self.buffer.dtype != answers.dtype:
            self.buffer = torch.zeros_like(answers)
        self.buffer[: len(answers)] = answers
        return self.buffer[: len(answers)]


@pytest.mark.parametrize("sound", SOUND)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_found_and_named(fault: type[Faulty], sound: str) -> None:
    check, sentence = FAULTS[fault]
    (result,) = check_device(lambda: fault(SOUND[sound](1)), seed=1, only=[check])
    assert not result.passed
    assert re.search(sentence, result.detail), result.detail


@pytest.mark.parametrize("runs", [4, pytest.param(100, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("sound", SOUND)
def test_sound_devices_pass(sound: str, runs: int) -> None:
    for seed in range(runs):

        def make(seed: int = seed) -> Device:
            return SOUND[sound](seed)

        for result in check_device(make, seed=seed, only=["noise", "fresh_answers", "row_order"]):
            assert result.passed, f"{result} with seed {seed}"
            # With so much noise, there may be no answers that can be told apart.
            assert not result.detail or sound == "very noisy", f"{result} with seed {seed}"


def test_batches_above_the_limit_of_the_device_are_not_sent() -> None:
    seen: list[int] = []

    class Counts(Noisy):
        def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
            seen.append(len(inputs))
            return super()._query(inputs)

    (result,) = check_device(lambda: Counts(max_batch=19), only=["row_order"])
    assert result.passed
    assert max(seen) == 19


class Dark(Noisy):
    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return 1e-3 * super()._query(inputs)


@pytest.mark.parametrize("check", ["fresh_answers", "row_order"])
def test_a_dark_chip_has_no_answers_that_can_be_told_apart(check: str) -> None:
    (result,) = check_device(lambda: Dark(claimed=0.05), only=[check])
    assert result.passed
    assert "does not apply: the answers to 16 vectors at each of 6 settings differ by at most" in result.detail


def test_the_order_of_rows_does_not_apply_to_a_device_that_accepts_one_vector() -> None:
    (result,) = check_device(lambda: Noisy(max_batch=1), only=["row_order"])
    assert result.detail == "does not apply: the device accepts only one vector in a query"


@pytest.mark.parametrize("claimed", [0.0, 0.02])
def test_a_claim_of_too_little_noise_fails_the_check_of_noise_only(claimed: float) -> None:
    results = check_device(lambda: Noisy(noise_std=0.1, claimed=claimed))
    assert [result.check for result in results if not result.passed] == ["noise"]
    assert list(CHECKS)[:2] == ["spec", "noise"]
    (noise,) = (result for result in results if result.check == "noise")
    assert "outputs scatter by 0." in noise.detail
    assert "set noise_std of the spec to 0." in noise.detail


def test_a_check_alone_measures_the_noise_before_it_blames_the_device() -> None:
    (result,) = check_device(lambda: Noisy(noise_std=0.1, claimed=0.0), only=["batch_equals_loop"])
    assert result.passed


@pytest.mark.parametrize("fault", [Reverses, StaleBatches], ids=lambda fault: fault.__name__)
def test_a_fault_is_found_behind_a_wrong_claim_of_noise(fault: type[Faulty]) -> None:
    results = check_device(lambda: fault(Noisy(noise_std=0.1, claimed=0.0)))
    failed = [result.check for result in results if not result.passed]
    assert failed[0] == "noise"
    assert FAULTS[fault][0] in failed
