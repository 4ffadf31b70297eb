"""Test the measurements of a calibration that need no law."""

from pathlib import Path
from typing import Any

import pytest
import torch

import astralora as al
from astralora.simulators import KINDS, Impairments, SimulatedDevice, device_factory

FLAWS: dict[str, Any] = {
    "control_levels": 64,
    "input_levels": 63,
    "output_levels": 127,
    "output_noise_fraction": 0.01,
    "phase_bias_std": 0.1,
    "gamma_std": 0.02,
    "crosstalk": 0.01,
}


class Unspecified(al.devices.DeviceWrapper):
    """Wrap a chip in a spec without noise and levels."""

    @property
    def spec(self) -> al.DeviceSpec:
        hidden = {"control_levels": None, "input_levels": None, "output_levels": None, "noise_std": 0.0}
        return self.device.spec.model_copy(update=hidden)


def chip(kind: str = "slm", seed: int = 1, **law: Any) -> SimulatedDevice:
    return device_factory(KINDS[kind])(8, 8, impairments=Impairments(**{**FLAWS, **law}), seed=seed)


def test_unclaimed_levels_and_noise_are_in_the_record_and_in_the_twin() -> None:
    device = chip(dead_output_fraction=1 / 8)
    session = al.Session(Unspecified(device))
    record = al.calibrate(session, al.Budget(programs=64, vectors=64 * 36))
    assert record.fit is not None
    assert record.fit.fits
    assert (record.measured.control_levels, record.measured.input_levels, record.measured.output_levels) == (
        64,
        63,
        127,
    )
    assert record.promised == session.spec
    dead = (device.transfer(torch.full((64,), 0.3), torch.eye(8)).std(dim=0) == 0).nonzero()[:, 0]
    assert torch.equal(record.tensors["dead_outputs"], dead)
    twin = SimulatedDevice.from_calibration(record)
    assert twin.spec.output_levels == 127
    # 62 settings of 8 vectors and 7 live outputs determine the noise to 1.2 %. Controls whose rounding is not known to
    # the last code add to it.
    assert twin.spec.noise_std == pytest.approx(device.spec.noise_std, rel=0.1)
    twin.open()
    twin.program(torch.full((64,), 1.0))
    answers = twin.query(torch.ones(200, 8))
    offset = record.constants["output_offset"][dead]
    assert torch.allclose(answers[:, dead].mean(dim=0), offset, atol=4 * twin.spec.noise_std / 200**0.5 + 0.01)
    assert "input_levels" in {finding["name"] for finding in record.findings}


def test_the_noise_of_each_output_is_in_the_record_and_in_the_twin() -> None:
    planted = torch.full((8,), 0.02)
    planted[3] = 0.05
    impairments = Impairments(**{**FLAWS, "output_levels": None, "control_levels": None})
    device = SimulatedDevice(KINDS["slm"](), 8, 8, impairments=impairments, seed=1, noise_by_output=planted)
    record = al.calibrate(al.Session(Unspecified(device)), al.Budget(programs=64, vectors=64 * 36))
    # 54 settings of 8 vectors determine each to 3.4 %.
    torch.testing.assert_close(record.tensors["noise/by_output"], planted, rtol=4 * 0.034, atol=0)
    twin = SimulatedDevice.from_calibration(record)
    twin.open()
    twin.program(torch.full((64,), 1.0))
    scatter = (twin.query(torch.full((5000, 8), 0.5))).std(dim=0)
    # 5,000 answers determine the noise of the twin to 1 %.
    torch.testing.assert_close(scatter, record.tensors["noise/by_output"].float(), rtol=4 * 0.01, atol=0)


@pytest.mark.parametrize("kind", ["slm", "mzi"])
@pytest.mark.parametrize(("programs", "vectors"), [(6, 100), (40, 321), (64, 900), (64, 4100), (90, 20_000)])
def test_the_budget_covers_all_measurements(kind: str, programs: int, vectors: int) -> None:
    session = al.Session(Unspecified(chip(kind)), al.Budget(programs=programs, vectors=vectors))
    record = al.calibrate(session, al.Budget(programs=programs, vectors=vectors), steps=10)
    assert session.usage.programs <= programs
    assert session.usage.vectors <= vectors
    assert record.spent == {
        "programs": session.usage.programs,
        "queries": session.usage.queries,
        "vectors": session.usage.vectors,
    }


def test_no_claimed_property_is_measured() -> None:
    session = al.Session(chip())
    record = al.calibrate(session, al.Budget(programs=20, vectors=164), steps=20)
    assert record.findings == ()
    assert (session.usage.programs, session.usage.vectors) == (20, 164)


def test_a_session_budget_that_does_not_cover_both_parts_is_not_spent() -> None:
    session = al.Session(Unspecified(chip()), al.Budget(programs=63))
    with pytest.raises(al.BudgetExceeded):
        al.calibrate(session, al.Budget(programs=80, vectors=4000))
    assert (session.usage.programs, session.usage.vectors) == (0, 0)


def test_a_known_characterisation_is_not_measured_again() -> None:
    device = Unspecified(chip())
    known = al.characterise(device, al.Budget(programs=40, vectors=3000), only=["ramp", "wobble", "converters"])
    session = al.Session(device)
    record = al.calibrate(session, al.Budget(programs=20, vectors=164), known=known, steps=20)
    assert (session.usage.programs, session.usage.vectors) == (20, 164)
    assert record.measured.control_levels == 64
    with pytest.raises(al.CalibrationMismatch, match=r"serial_number .*-1-.*, and this device has .*-2-"):
        al.calibrate(Unspecified(chip(seed=2)), known=known)


def test_an_interruption_keeps_the_direct_measurements(tmp_path: Path) -> None:
    path, budget = tmp_path / "chip.cal.json", al.Budget(programs=64, vectors=2000)

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "measured" and event["done"] == 30:
            raise KeyboardInterrupt

    device = Unspecified(chip())
    first = al.Session(device)
    with pytest.raises(KeyboardInterrupt):
        al.calibrate(first, budget, path=path, steps=20, listener=interrupt)
    second = al.Session(device)
    record = al.calibrate(second, budget, path=path, steps=20)
    assert second.usage.programs < 30
    assert first.usage.programs + second.usage.programs <= 64
    assert record.measured.control_levels == 64
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_chip_of_unknown_law_is_measured_without_one(tmp_path: Path) -> None:
    device = chip("mrr", control_levels=None, input_levels=None, output_levels=None, output_offset_std=0.05)
    budget = al.Budget(programs=80, vectors=6000)
    session = al.Session(Unspecified(device), budget)
    record = al.calibrate(session, budget, model="none", path=tmp_path / "c.json")
    assert (record.model, record.fit, record.constants) == (None, None, {})
    assert session.usage.vectors <= 6000
    again = al.Calibration.load(tmp_path / "c.json")
    assert again.findings == record.findings
    true = device.true_constants["output_offset"].float()
    off = (again.tensors["dark/offset"] - true) / again.tensors["dark/error"]
    assert float(off.abs().max()) < 3.5  # one of eight normal errors exceeds this once in 270 runs
    # Only the dark level of the outputs is corrected.
    corrected = al.devices.CalibratedDevice(Unspecified(device), again)
    corrected.open()
    corrected.program(torch.full((64,), 0.3))
    x = torch.rand(400, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    found, plain = corrected.query(x).mean(dim=0), device.transfer(torch.full((64,), 0.3), x).mean(dim=0) - true
    error = again.measured.noise_std / 400**0.5
    assert float((found - plain).abs().max()) < 4 * error + float(3 * again.tensors["dark/error"].max())
    assert corrected.twin is None
    with pytest.raises(al.DeviceError, match="a twin cannot be made from the calibration: it has no law"):
        SimulatedDevice.from_calibration(again)
