"""Test the checks: correct devices pass all of them, and every faulty driver fails the check of its fault."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import astralora.devices as d
from astralora.devices import DeviceError, DeviceTimeout, HardwareDevice, NotConnected, TiledDevice, Usage
from astralora.devices.testing import CHECKS, CheckResult, DeviceConformance, check_device

N, M = 6, 5
SPEC: dict[str, Any] = {
    "name": "crossbar",
    "in_features": N,
    "out_features": M,
    "num_controls": N * M,
    "input_range": (-1.0, 1.0),
    "control_range": (-1.0, 1.0),
    "linear": True,
    "coupling": "elementwise",
    "idempotent_program": True,
}


class Crossbar(HardwareDevice):
    """Compute y = W x correctly; base class of the faulty drivers."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(d.DeviceSpec(**{**SPEC, **spec}))
        self.is_connected = False

    def _open(self) -> None:
        self.is_connected = True
        self.weights: NDArray[Any] = np.zeros((M, N))

    def _close(self) -> None:
        self.is_connected = False
        self.weights = np.zeros((M, N))

    def _program(self, controls: NDArray[Any]) -> None:
        self.weights = self._convert_controls(np.array(controls, dtype=float)).reshape(M, N)

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return self._detect(self._convert_inputs(np.array(inputs, dtype=float)) @ self.weights.T)

    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        return controls

    def _convert_inputs(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return inputs

    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs


def rounded(values: NDArray[Any], levels: int, bounds: tuple[float, float] = (-1.0, 1.0)) -> NDArray[Any]:
    step = (bounds[1] - bounds[0]) / (levels - 1)
    return bounds[0] + step * np.clip(np.rint((values - bounds[0]) / step), 0, levels - 1)


class Noisy(Crossbar):
    """Add 8-bit converters and noise, and claim both."""

    def __init__(self, **spec: Any) -> None:
        bounds = {"output_range": (-6.0, 6.0), "output_levels": 255, "input_levels": 255, "control_levels": 255}
        super().__init__(**{**bounds, "noise_std": 0.05, **spec})
        self.random = np.random.default_rng(0)

    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        return rounded(controls, 255)

    def _convert_inputs(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return rounded(inputs, 255)

    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return rounded(outputs + 0.05 * self.random.standard_normal(outputs.shape), 255, (-6.0, 6.0))


# -- faulty drivers: each fails the check in its decorator ---------------------------------------------

FAULTY: dict[Callable[[], Any], str] = {}


def fails_check(check: str) -> Callable[[Any], Any]:
    def register(driver: Any) -> Any:
        FAULTY[driver] = check
        return driver

    return register


@fails_check("spec")
class ChangesItsSpec(Crossbar):
    def _open(self) -> None:
        super()._open()
        self.spec = self.spec.model_copy(update={"noise_std": 0.1})


@fails_check("lifecycle")
class DoesNotReopen(Crossbar):
    opened = False

    def _open(self) -> None:
        if self.opened:
            raise NotConnected("has been opened before")
        self.opened = True
        super()._open()


@fails_check("leaks")
class LeaksThePort(Crossbar):
    def _open(self) -> None:
        super()._open()
        self.pipe = os.pipe()

    def _close(self) -> None:
        KEPT.extend(self.pipe)


@fails_check("leaks")
class HoldsThePort(Crossbar):
    user: ClassVar[Any] = None

    def _open(self) -> None:
        super()._open()
        if HoldsThePort.user not in (None, self):
            raise NotConnected("is in use")
        HoldsThePort.user = self


@fails_check("errors")
class WorksWhenClosed:
    """Work on tensors, without the checks of HardwareDevice."""

    spec = d.DeviceSpec(**SPEC)

    def open(self) -> None:
        self.controls = torch.zeros(N * M)

    def close(self) -> None:
        pass

    def program(self, controls: torch.Tensor) -> None:
        self.controls = controls.clone()

    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.controls.view(M, N).to(inputs).T


class Raw:
    """Work correctly on tensors."""

    spec = d.DeviceSpec(**SPEC)

    def __init__(self) -> None:
        self.controls: torch.Tensor | None = None
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open, self.controls = False, None

    def program(self, controls: torch.Tensor) -> None:
        if not self.is_open:
            raise NotConnected("is closed")
        self.controls = controls.clone()

    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.controls is None:
            raise NotConnected("holds no controls")
        return inputs @ self.controls.view(M, N).to(inputs).T


@fails_check("errors")
class RaisesItsOwn(Raw):
    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.controls is None:
            raise AttributeError("'NoneType' object has no attribute 'write'")
        return super().query(inputs)


@fails_check("shapes")
class DropsTheLastRow(Crossbar):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs[:-1] if len(outputs) > 2 else outputs


@fails_check("batch_equals_loop")
class ForgetsTheLastRow(Crossbar):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if len(outputs) > 1:
            outputs[-1] = 0
        return outputs


@fails_check("dtypes")
class WrongType(Raw):
    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().query(inputs).double()


@fails_check("inputs_not_mutated")
class MutatesInputs(Raw):
    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        answer = super().query(inputs)
        inputs.clamp_(-0.1, 0.1)
        return answer


@fails_check("inputs_not_mutated")
class KeepsTheCallersControls(Raw):
    def program(self, controls: torch.Tensor) -> None:
        super().program(controls)
        self.controls = controls


@fails_check("inputs_not_mutated")
class ReusesItsBuffer(Raw):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.zeros(1024, M)

    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        self.buffer[: len(inputs)] = super().query(inputs)
        return self.buffer[: len(inputs)].to(inputs.dtype)


@fails_check("program_takes_effect")
class IgnoresProgram(Crossbar):
    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        return np.linspace(-1, 1, N * M)


@fails_check("program_sets_everything")
class KeepsHalfOfWhatWas(Crossbar):
    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        kept = self.weights.reshape(-1).copy()
        kept[::2] = controls[::2]
        kept[1::2] += 0.5 * (controls[1::2] - kept[1::2])
        return kept


@fails_check("program_idempotence")
class NotIdempotent(Crossbar):
    """Simulate cells that every write pulse moves on from their last state."""

    def _open(self) -> None:
        super()._open()
        self.last: NDArray[Any] | None = None
        self.pulses = 0

    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        self.pulses = self.pulses + 1 if self.last is not None and np.array_equal(self.last, controls) else 0
        self.last = controls
        return controls * 0.9**self.pulses


@fails_check("threads")
class NotThreadSafe(Raw):
    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        self.newest = inputs
        time.sleep(0.002)
        return super().query(self.newest)


@fails_check("usage")
class DoubleCounts(TiledDevice):
    def __init__(self) -> None:
        chips = [Crossbar(), Crossbar()]
        super().__init__(chips, N, 2 * M)

    @property
    def usage(self) -> Usage:
        return super().usage.scaled(2)


class Interruptible(Crossbar):
    cut = False

    @contextmanager
    def interrupted(self) -> Any:
        self.cut = True
        try:
            yield
        finally:
            self.cut = False

    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if self.cut:
            raise DeviceTimeout("no answer")
        return outputs


@fails_check("recovery")
class SwallowsTimeouts(Interruptible):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        try:
            return super()._detect(outputs)
        except DeviceTimeout:
            return np.zeros_like(outputs)


@fails_check("recovery")
class RaisesSomethingElse(Interruptible):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if self.cut:
            raise OSError("Input/output error")
        return outputs


@fails_check("input_range")
class RefusesItsRange(Crossbar):
    def _convert_inputs(self, inputs: NDArray[Any]) -> NDArray[Any]:
        if np.abs(inputs).max() > 0.95:
            raise DeviceError("the input amplifier is overdriven")
        return inputs


@fails_check("control_range")
class RefusesItsControls(Crossbar):
    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        if controls.min() <= -1.0:
            raise DeviceError("voltage too low")
        return controls


@fails_check("output_range")
class LeavesItsRange(Crossbar):
    def __init__(self) -> None:
        super().__init__(output_range=(-1.0, 1.0))


@fails_check("output_levels")
class CoarserOutput(Noisy):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return rounded(super()._detect(outputs), 128, (-6.0, 6.0))


@fails_check("output_levels")
class NoOutputLevels(Noisy):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return np.clip(outputs + 0.05 * self.random.standard_normal(outputs.shape), -6.0, 6.0)


@fails_check("input_levels")
class CoarserInput(Crossbar):
    def __init__(self) -> None:
        super().__init__(input_levels=255)

    def _convert_inputs(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return rounded(inputs, 128)


@fails_check("input_levels")
class NoInputLevels(Crossbar):
    def __init__(self) -> None:
        super().__init__(input_levels=255)


@fails_check("control_levels")
class CoarserControls(Crossbar):
    def __init__(self) -> None:
        super().__init__(control_levels=255)

    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        return rounded(controls, 64)


@fails_check("control_levels")
class NoControlLevels(Crossbar):
    def __init__(self) -> None:
        super().__init__(control_levels=255)


@fails_check("linearity")
class Saturates(Crossbar):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return 3 * np.tanh(outputs / 3)


@fails_check("linearity")
class HasAnOffset(Noisy):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return super()._detect(outputs + 0.5)


@fails_check("coupling")
class Mixes(Crossbar):
    def _convert_controls(self, controls: NDArray[Any]) -> NDArray[Any]:
        matrix = controls.reshape(M, N)
        return (matrix + 0.3 * np.roll(matrix, 1, axis=0)).reshape(-1)


@fails_check("noise")
class NoisierThanItSays(Noisy):
    def __init__(self) -> None:
        super().__init__(noise_std=0.03, output_range=None, output_levels=None)

    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs + 0.05 * self.random.standard_normal(outputs.shape)


@fails_check("noise")
class QuieterThanItSays(Crossbar):
    def __init__(self) -> None:
        super().__init__(noise_std=0.1)


@fails_check("capabilities")
class WrongMany(Crossbar):
    capabilities = (d.ProgramsMany,)

    def query_each(self, controls: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        self.program(controls[-1])
        return self.query(inputs).expand(len(controls), -1, -1).clone()


@fails_check("fresh_answers")
class ReturnsTheAnswerBefore(Crossbar):
    def _open(self) -> None:
        super()._open()
        self.before: NDArray[Any] | None = None

    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        before, self.before = self.before, outputs.copy()
        return outputs if before is None or before.shape != outputs.shape else before


@fails_check("row_order")
class ReversesRows(Crossbar):
    def _detect(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs[::-1]


KEPT: list[int] = []


@pytest.fixture(autouse=True)
def close_leaked_files() -> Any:
    HoldsThePort.user = None
    yield
    while KEPT:
        os.close(KEPT.pop())


def failures(results: list[CheckResult]) -> list[str]:
    return [f"{result.check}: {result.detail}" for result in results if not result.passed]


@pytest.mark.parametrize("driver", FAULTY, ids=lambda driver: driver.__name__)
def test_every_faulty_driver_fails_its_check(driver: Any) -> None:
    (result,) = check_device(driver, only=[FAULTY[driver]])
    assert not result.passed
    assert result.detail


def test_every_check_but_one_has_a_faulty_driver() -> None:
    assert len(FAULTY) >= 12
    assert set(CHECKS) - set(FAULTY.values()) == {"requests"}, "a session checks requests for every driver"


@pytest.mark.parametrize("runs", [10, pytest.param(100, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("driver", [Crossbar, Noisy, Raw, Interruptible], ids=lambda driver: driver.__name__)
def test_correct_drivers_pass_every_run_in_a_row(driver: Any, runs: int) -> None:
    for seed in range(runs):
        assert failures(check_device(driver, seed=seed)) == []


@pytest.mark.parametrize("impairments", ["ideal", "lab", "harsh"])
@pytest.mark.parametrize("kind", ["matvec", "slm", "mrr", "mzi", "monarch"])
def test_simulated_chips_pass_all_checks(kind: str, impairments: str) -> None:
    for seed in range(3):

        def make(seed: int = seed) -> d.Device:
            return d.make_device(kind, in_features=8, out_features=8, impairments=impairments, seed=seed)

        assert failures(check_device(make, seed=seed)) == []


def test_a_tiled_device_passes_all_checks() -> None:
    def make() -> d.Device:
        return d.make_device("tiled", in_features=8, out_features=12, chip="slm", tile=4, impairments="lab")

    assert failures(check_device(make)) == []


@pytest.mark.parametrize("protocol", ["frames", "scpi"])
def test_drivers_of_emulated_ports_pass_all_checks(protocol: str, emulated_port: Any) -> None:
    port = emulated_port("slm", protocol=protocol, in_features=8, out_features=6, impairments="lab")
    driver = {"frames": "frame-mvm", "scpi": "scpi-mvm"}[protocol]
    results = check_device(lambda: d.make_device(driver, port=port, timeout=0.2))
    assert failures(results) == []
    (recovery,) = (result for result in results if result.check == "recovery")
    assert recovery.detail == "", "these links can be cut, so the check applies"


def test_a_check_that_does_not_apply_gives_the_reason() -> None:
    (result,) = check_device(Crossbar, only=["noise"])
    assert result.passed
    (result,) = check_device(Crossbar, only=["output_levels"])
    assert result == CheckResult("output_levels", True, "does not apply: the spec claims no output levels")


def test_an_error_of_a_driver_is_a_failed_check() -> None:
    def broken() -> d.Device:
        raise ZeroDivisionError("in its constructor")

    results = check_device(broken, only=["spec", "noise"])
    assert [result.passed for result in results] == [False, False]
    assert "ZeroDivisionError: in its constructor" in results[0].detail


def test_an_unknown_check_is_named() -> None:
    with pytest.raises(DeviceError, match="there is no check 'colour'; known are spec, "):
        check_device(Crossbar, only=["colour"])


def test_devices_are_closed_after_every_check() -> None:
    made: list[Crossbar] = []

    def make() -> d.Device:
        made.append(Crossbar())
        return made[-1]

    check_device(make)
    assert len(made) >= len(CHECKS)
    assert not any(device.is_connected for device in made)
    assert threading.active_count() < 50


class TestThreeLines(DeviceConformance):
    def make_device(self) -> d.Device:
        return Noisy()
