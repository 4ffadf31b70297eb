"""Test calibration records, and devices corrected by them."""

import json
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.simulators import KINDS, Impairments, SimulatedDevice, device_factory

FLAWS: dict[str, Any] = {
    "phase_bias_std": 0.2,
    "gamma_std": 0.03,
    "crosstalk": 0.01,
    "input_gain_std": 0.02,
    "input_offset_std": 0.01,
    "output_gain_std": 0.05,
    "output_offset_std": 0.02,
}


def chip(kind: str = "mzi", ports: int = 6, seed: int = 0, **law: Any) -> SimulatedDevice:
    return device_factory(KINDS[kind])(ports, ports, impairments=Impairments(**{**FLAWS, **law}), seed=seed)


def record_of(device: SimulatedDevice, *, fits: bool = True, **changes: Any) -> d.Calibration:
    """Return the record that a perfect calibration would write."""
    known = device.true_constants
    full = {name: known.get(name, torch.full(c.shape, c.nominal)).float() for name, c in device.constants().items()}
    fit = d.FitQuality(
        fits=fits,
        verdict="The law fits." if fits else "The law does not fit.",
        unexplained=0.0,
        unexplained_error=0.0,
        held_out_rms=0.01,
        training_rms=0.01,
        noise_std=0.01,
        starts=1,
        settings=8,
        held_out_settings=2,
        errors="full",
    )
    values: dict[str, Any] = {
        "device": device.spec.name,
        "serial_number": device.spec.serial_number,
        "promised": device.spec,
        "measured": device.spec,
        "model": d.FittedModel(name=device.spec.name),
        "fit": fit,
        "spent": {"programs": 10, "queries": 10, "vectors": 100},
        "tensors": {f"constants/{name}": value for name, value in full.items()},
    }
    return d.Calibration(**{**values, **changes})


def test_a_record_is_restored_from_its_files(tmp_path: Path) -> None:
    record = record_of(chip())
    record.save(tmp_path / "chip.cal.json")
    again = d.Calibration.load(tmp_path / "chip.cal.json")
    assert again.model_dump() == record.model_dump()
    assert all(torch.equal(again.constants[name], value) for name, value in record.constants.items())
    assert again.digest == record.digest


def test_a_new_record_replaces_the_old_one_and_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "chip.cal.json"
    record_of(chip(seed=0)).save(path)
    record_of(chip(seed=1)).save(path)
    assert len(list(tmp_path.iterdir())) == 2
    assert d.Calibration.load(path).serial_number == chip(seed=1).spec.serial_number


def test_a_crash_while_saving_leaves_the_old_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chip.cal.json"
    old = record_of(chip(seed=0))
    old.save(path)
    written: list[Path] = []

    def crash(place: Path, content: Any, *_: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(place)
        place.write_bytes(content)

    monkeypatch.setattr("astralora.devices.calibration.write_file", crash)
    with pytest.raises(KeyboardInterrupt):
        record_of(chip(seed=1)).save(path)
    assert d.Calibration.load(path).digest == old.digest


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path, tensors: path.unlink(), "cannot be read: No such file or directory"),
        (lambda path, tensors: path.write_text("{"), "is not JSON"),
        (lambda path, tensors: path.write_text("[]"), "must contain a JSON object with keys and values, not a list"),
        (lambda path, tensors: tensors.unlink(), "which is not in the same folder; copy both"),
        (lambda path, tensors: tensors.write_bytes(b"x" + tensors.read_bytes()[1:]), "is damaged: its hash"),
        (lambda path, tensors: path.write_text(path.read_text().replace('"mzi"', '"mrr"')), "is damaged: its hash"),
        (lambda path, tensors: path.write_text(path.read_text().replace('"format": 1', '"format": 2')), "has format 2"),
    ],
)
def test_a_damaged_record_is_described_in_one_sentence(spoil: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "chip.cal.json"
    record_of(chip()).save(path)
    spoil(path, next(tmp_path.glob("*.safetensors")))
    with pytest.raises(d.DeviceError, match=sentence):
        d.Calibration.load(path)


def test_a_record_cannot_name_a_file_in_another_folder(tmp_path: Path) -> None:
    path = tmp_path / "chip.cal.json"
    record_of(chip()).save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "tensors_file": "../secret.safetensors"}))
    with pytest.raises(d.DeviceError, match="must be the name of a file in the same folder"):
        d.Calibration.load(path)


def test_another_chip_is_refused() -> None:
    with pytest.raises(
        d.CalibrationMismatch, match=r"was taken on sim-mzi-6x6-0-.*, but this device is sim-mzi-6x6-1-"
    ):
        d.CalibratedDevice(chip(seed=1), record_of(chip(seed=0)))


def test_warns_of_age_and_temperature() -> None:
    old = record_of(chip(), created=datetime.now(UTC) - timedelta(days=45), temperature_celsius=20.0)
    with pytest.warns(d.CalibrationAgeWarning, match="'mzi' is 45 days old"):
        old.check(chip().spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old.check(chip().spec, max_age_days=60, temperature_celsius=24.0)
    with pytest.warns(d.CalibrationAgeWarning, match="at 31.0 degrees Celsius, 11.0 away"):
        old.check(chip().spec, max_age_days=60, temperature_celsius=31.0)


@pytest.mark.parametrize("kind", ["mzi", "slm"])
def test_a_calibrated_chip_acts_like_a_nominal_one(kind: str, generator: torch.Generator) -> None:
    flawed, perfect = chip(kind), device_factory(KINDS[kind])(6, 6)
    session = d.Session(d.CalibratedDevice(flawed, record_of(flawed)))
    # Away from the ends of the range, which is not a whole period.
    controls = 1.0 + 3.0 * torch.rand(flawed.spec.num_controls, generator=generator, dtype=torch.float64)
    inputs = 1.6 * torch.rand(5, 6, generator=generator, dtype=torch.float64) - 0.8
    with session:
        answers = session.apply(controls, inputs)
    # The record is in single precision.
    torch.testing.assert_close(answers, perfect.transfer(controls, inputs), atol=1e-5, rtol=1e-5)


def test_its_twin_answers_as_the_calibrated_chip_does(generator: torch.Generator) -> None:
    flawed = chip()
    device = d.CalibratedDevice(flawed, record_of(flawed))
    assert device.twin is not None
    controls = 6 * torch.rand(3, flawed.spec.num_controls, generator=generator, dtype=torch.float64)
    inputs = 1.6 * torch.rand(5, 6, generator=generator, dtype=torch.float64) - 0.8
    with d.Session(device) as session:
        torch.testing.assert_close(
            device.twin.transfer(controls, inputs), session.query_each(controls, inputs), atol=1e-5, rtol=1e-5
        )


def test_gradients_go_through_the_twin(generator: torch.Generator) -> None:
    flawed = chip(ports=4)
    twin = d.CalibratedTwin(record_of(flawed))
    controls = (1 + 3 * torch.rand(12, generator=generator, dtype=torch.float64)).requires_grad_()
    inputs = torch.rand(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(twin.transfer, (controls, inputs))


def test_where_no_law_fits_nothing_is_corrected(generator: torch.Generator) -> None:
    flawed = chip()
    device = d.CalibratedDevice(flawed, record_of(flawed, fits=False))
    assert device.twin is None
    controls = 6 * torch.rand(flawed.spec.num_controls, generator=generator)
    inputs = torch.rand(2, 6, generator=generator)
    with d.Session(device) as session:
        torch.testing.assert_close(session.apply(controls, inputs), flawed.transfer(controls, inputs))


def test_the_corrected_input_range_is_covered_by_every_modulator() -> None:
    flawed = chip()
    bounds = d.CalibratedDevice(flawed, record_of(flawed)).spec.input_range
    assert bounds is not None
    assert -1 < bounds[0] == -bounds[1] < -0.8
    sent = d.CalibratedTwin(record_of(flawed)).sent(torch.full((1, 6), bounds[1]))
    assert float(sent.max()) <= 1.0 + 1e-6


def test_operations_on_a_calibrated_chip_are_counted_once() -> None:
    flawed = chip()
    with d.Session(d.CalibratedDevice(flawed, record_of(flawed)), budget=d.Budget(programs=1)) as session:
        session.apply(torch.ones(30), torch.zeros(7, 6))
        assert (session.usage.programs, session.usage.vectors) == (1, 7)
        with pytest.raises(d.BudgetExceeded):
            session.program(torch.zeros(30))


def test_a_name_and_a_file_open_a_calibrated_chip(tmp_path: Path) -> None:
    law = {"phase_bias_std": 0.1}
    session = d.open_device("mzi", in_features=4, out_features=4, impairments=law)
    assert isinstance(session.device, SimulatedDevice)
    record_of(session.device).save(tmp_path / "chip.cal.json")
    session.close()
    path = tmp_path / "chip.cal.json"
    with d.open_device("mzi", in_features=4, out_features=4, impairments=law, calibration=path) as calibrated:
        assert isinstance(calibrated.device, d.CalibratedDevice)
    with pytest.raises(d.CalibrationMismatch):
        d.open_device("mzi", in_features=4, out_features=4, calibration=path)


def test_a_twin_has_the_constants_and_the_noise_of_its_chip(generator: torch.Generator, tmp_path: Path) -> None:
    flawed = chip(output_noise_fraction=0.02, input_levels=255, output_levels=255)
    record_of(flawed).save(tmp_path / "chip.cal.json")
    twin = d.make_device("twin", calibration=str(tmp_path / "chip.cal.json"))
    assert isinstance(twin, SimulatedDevice)
    controls = 6 * torch.rand(30, generator=generator)
    inputs = torch.rand(4, 6, generator=generator)
    torch.testing.assert_close(twin.transfer(controls, inputs), flawed.transfer(controls, inputs), atol=1e-5, rtol=1e-5)
    for what in ("noise_std", "input_levels", "output_levels", "output_range"):
        assert getattr(twin.spec, what) == pytest.approx(getattr(flawed.spec, what)), what


def test_no_twin_is_made_of_a_law_that_does_not_fit() -> None:
    with pytest.raises(d.DeviceError, match="a twin cannot be made from the calibration: The law does not fit"):
        SimulatedDevice.from_calibration(record_of(chip(), fits=False))


def test_a_model_of_another_size_or_without_constants_is_refused() -> None:
    with pytest.raises(d.DeviceError, match="has 36 controls at 6 x 6, but 'mzi' has 30 and needs another model"):
        d.make_model(d.FittedModel(name="slm"), chip().spec)
    spec = d.DeviceSpec(name="x", in_features=2, out_features=2, num_controls=4)
    with pytest.raises(d.DeviceError, match="has no constants to fit"):
        d.make_model(d.FittedModel(name="tiled", options={"chip": "slm", "tile": 2}), spec)


def test_simulators_have_a_virtual_clock_and_hardware_the_wall_clock(bench: Any) -> None:
    simulated = chip()
    clock = d.clock_of(d.Session(simulated))
    before = clock.clock_seconds
    clock.wait(1e6)
    assert clock.clock_seconds == before + 1e6
    assert isinstance(d.clock_of(bench), d.WallClock)


def test_a_calibrated_chip_forwards_its_clock_and_thermometer() -> None:
    flawed = chip(temperature_std=1.0)
    session = d.Session(d.CalibratedDevice(flawed, record_of(flawed)))
    assert d.clock_of(session) is flawed
    assert session.capability(d.Thermometer) is flawed
    assert session.capability(d.Identifiable) is None, "its constants are those of the chip without its calibration"
