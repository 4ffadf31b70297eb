"""Change every part of a calibration in many ways: it is used, or refused in one sentence."""

import hashlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import astralora.devices as d
from astralora import ConfigurationError
from astralora.reports import calibration_report
from astralora.simulators import SimulatedDevice

from ..damage import hostile_values
from .test_calibration import chip, record_of

PORTS = 4


def device() -> SimulatedDevice:
    return chip(ports=PORTS, output_noise_fraction=0.02)


def whole_record(**changes: Any) -> d.Calibration:
    """Return a record with every tensor that a calibration can write, and a finding."""
    made = device()
    record = record_of(made)
    generator = torch.Generator().manual_seed(0)
    constants = {name: value for name, value in record.tensors.items() if name.startswith("constants/")}
    controls, outputs = made.spec.num_controls, made.spec.out_features
    fixed = torch.full((controls,), torch.nan)
    fixed[2] = 1.5
    held_out = torch.rand(2, PORTS, outputs, generator=generator)
    tensors = {
        **constants,
        **{name.replace("constants/", "errors/"): torch.full_like(value, 0.01) for name, value in constants.items()},
        **{name.replace("constants/", "nominal/"): torch.zeros_like(value) for name, value in constants.items()},
        "fixed": fixed,
        "fixed_errors": fixed / 10,
        "dead_outputs": torch.tensor([1]),
        "stuck_controls": torch.tensor([2]),
        "noise/by_output": torch.full((outputs,), 0.02),
        "held_out/measured": held_out,
        "held_out/foreseen": held_out + 0.01,
        "dark/offset": torch.full((outputs,), 0.1),
        "dark/error": torch.full((outputs,), 0.01),
        "curve/control": torch.linspace(0, 1, 5),
        "curve/entry": torch.linspace(0, 1, 5),
        "curve/spread": torch.full((5,), 0.1),
        "crosstalk/kernel": torch.zeros(3, 3),
        "crosstalk/errors": torch.full((3, 3), 0.01),
    }
    finding = {
        "name": "noise_std", "measurement": "noise", "value": 0.1, "low": 0.09, "high": 0.11, "unit": "",
        "promised": None, "agrees": None, "sentence": "One output has a noise of 0.1.",
    }  # fmt: skip
    return record_of(made, tensors=tensors, findings=(finding,), temperature_celsius=24.0, **changes)


def write(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a record with hashes that are right, as another program would."""
    data = save({name: tensors[name].contiguous() for name in sorted(tensors)})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode() + b"\0" + data).hexdigest()
    path.with_name("x.safetensors").write_bytes(data)
    sha = {"tensors_file": "x.safetensors", "tensors_sha256": hashlib.sha256(data).hexdigest(), "sha256": digest}
    path.write_text(json.dumps({**content, **sha}))


def use(record: d.Calibration, *, page: bool = False) -> None:
    """Use a record in every way: to correct its chip, as a twin, as a simulated chip, and for a page."""
    made = device()
    inputs = torch.full((2, PORTS), 0.1)
    with d.Session(d.CalibratedDevice(made, record)) as session:
        session.apply(torch.ones(made.spec.num_controls), inputs)
    if record.fit is not None and record.fit.fits:
        d.CalibratedTwin(record).transfer(torch.ones(made.spec.num_controls), inputs)
        with d.Session(SimulatedDevice.from_calibration(record)) as twin:
            twin.apply(torch.ones(made.spec.num_controls), inputs)
    if page:
        assert calibration_report(record)


def outcome(path: Path, what: str, *, page: bool) -> str:
    """Load and use a record; return ``"used"`` or the part that has refused it."""
    where = "load"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = d.Calibration.load(path)
            where = "use"
            use(record, page=page)
    except (d.DeviceError, ConfigurationError) as error:
        sentence = str(error)
    except Exception as error:
        raise AssertionError(f"{what} ends in {type(error).__name__}: {error}") from error
    else:
        return "used"
    assert sentence.isprintable(), what
    assert len(sentence) < 1500, what
    return where


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda value: filled(value, torch.nan),
    "inf": lambda value: filled(value, torch.inf),
    "-inf": lambda value: filled(value, -torch.inf),
    "-1": lambda value: filled(value, -1.0),
    "1e30": lambda value: filled(value, 1e30),
    "zeros": torch.zeros_like,
    "int64": lambda value: value.nan_to_num().to(torch.int64),
    "bool": lambda value: value.nan_to_num().to(torch.bool),
    "float16": lambda value: value.to(torch.float16),
    "bfloat16": lambda value: value.to(torch.bfloat16),
    "float64": lambda value: value.to(torch.float64),
    "complex64": lambda value: value.to(torch.complex64),
    "shorter": lambda value: value[:-1] if value.ndim else value.expand(2),
    "longer": lambda value: torch.cat([value, value]) if value.ndim else value.expand(3),
    "empty": lambda value: value.new_zeros(0),
    "scalar": lambda value: value.flatten()[0],
    "column": lambda value: value.unsqueeze(-1),
    "row": lambda value: value.unsqueeze(0),
}


def filled(value: Tensor, number: float) -> Tensor:
    """Return a copy of a tensor with a number in its first place; of indices, with one that is too small or large."""
    found = value.clone()
    found.flatten()[0] = number if found.is_floating_point() else (2**40 if number > 0 else -7)
    return found


def changed_tensors(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, value in tensors.items():
        for what, change in CHANGES.items():
            yield f"{name} {what}", {**tensors, name: change(value)}
        rest = {other: each for other, each in tensors.items() if other != name}
        yield f"{name} removed", rest
        yield f"{name} renamed", {**rest, name + "x": value}
        yield f"{name} nested", {**rest, "constants/" + name: value}


def run(folder: Path, versions: list[tuple[str, dict[str, Any], dict[str, Tensor]]], *, page: bool) -> Counter[str]:
    outcomes = Counter[str]()
    for what, content, tensors in versions:
        write(folder / "c.cal.json", content, tensors)
        outcomes[outcome(folder / "c.cal.json", what, page=page)] += 1
    return outcomes


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.campaign)])
def test_a_changed_calibration_is_used_or_refused_in_one_sentence(count: int, tmp_path: Path) -> None:
    record, rng = whole_record(), random.Random(0)
    content = json.loads(record.model_dump_json())
    versions = [(what, content, tensors) for what, tensors in changed_tensors(record.tensors)]
    fields = [(what, changed, record.tensors) for what, changed in hostile_values(content)]
    chosen = [*rng.sample(versions, min(count, len(versions))), *rng.sample(fields, min(count, len(fields)))]
    outcomes = run(tmp_path, [("unchanged", content, record.tensors), *chosen], page=count > 100)
    assert outcomes["used"] > 0
    assert outcomes["load"] > 0
    print(dict(outcomes))


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("constants/output_gain", torch.full((4,), torch.nan), "has the value nan, and must have finite values"),
        ("constants/output_gain", torch.full((4,), torch.inf), "has the value inf, and must have finite values"),
        ("constants/output_gain", torch.ones(3), r"has shape \(3,\), and must have \(4,\), the out_features"),
        ("errors/gamma", torch.full((12,), -0.1), "has the value -0.1, and must have no negative values"),
        ("errors/gamma", torch.full((3,), 0.1), r"has shape \(3,\), and must have \(12,\) as constants/gamma"),
        ("noise/by_output", torch.full((4,), -0.1), "has the value -0.1, and must have no negative values"),
        ("fixed", torch.ones(5), r"has shape \(5,\), and must have \(12,\), the num_controls"),
        ("fixed", torch.full((12,), torch.inf), "has the value inf, and must have finite values"),
        ("dead_outputs", torch.tensor([1, 1]), "has an index twice, and must have each once"),
        ("dead_outputs", torch.tensor([4]), "has the index 4, and the spec has 4 out_features, counted from 0"),
        ("stuck_controls", torch.tensor([-1]), "has the index -1, and the spec has 12 num_controls"),
        ("dead_outputs", torch.tensor([1.0]), "has float32 of shape .*must have one row of int64 indices"),
        ("held_out/measured", torch.ones(2, 4, 3), r"has shape \(2, 4, 4\), and must have \(2, 4, 3\) as held_out"),
        ("dark/error", torch.tensor([0.1, 0.1]), r"has shape \(2,\), and must have \(4,\), the out_features"),
    ],
)
def test_a_wrong_tensor_is_refused_when_it_is_loaded(name: str, value: Tensor, complaint: str, tmp_path: Path) -> None:
    record = whole_record()
    write(tmp_path / "c.json", json.loads(record.model_dump_json()), {**record.tensors, name: value})
    with pytest.raises(d.DeviceError, match=rf"the calibration .*c.json: .*tensor .*{complaint}") as error:
        d.Calibration.load(tmp_path / "c.json")
    assert "calibrate the device again" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("colour", torch.ones(4), "has the constant 'colour', and the law has only phase_bias, gamma"),
        ("phase_bias", torch.ones(3), r"the constant phase_bias has shape \(3,\), and must have \(12,\)"),
        ("output_gain", torch.full((PORTS,), 1e6), "the constant output_gain has the value 1e.06, and must be near 1"),
    ],
)
def test_constants_that_do_not_fit_the_law_are_refused_before_the_chip_is_used(
    name: str, value: Tensor, complaint: str
) -> None:
    record = whole_record()
    changed = record.model_copy(update={"tensors": {**record.tensors, f"constants/{name}": value}})
    for make in (lambda: d.CalibratedDevice(device(), changed), lambda: SimulatedDevice.from_calibration(changed)):
        with pytest.raises(d.DeviceError, match=complaint):
            make()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"device": ""}, "device: String should have at least 1 character"),
        ({"spent": {"programs": 1}}, "spent.queries is missing"),
        ({"spent": {"programs": -1, "queries": 1, "vectors": 1}}, "spent.programs: Input should be greater than"),
        ({"wall_seconds": -1.0}, "wall_seconds: Input should be greater than or equal to 0"),
        ({"model": None}, "model is null, and must name the law that was fitted"),
        ({"findings": [{"name": "a"}]}, "findings.0.sentence must be a text"),
    ],
)
def test_a_wrong_field_is_refused_when_it_is_loaded(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    record = whole_record()
    write(tmp_path / "c.json", {**json.loads(record.model_dump_json()), **change}, record.tensors)
    with pytest.raises(d.DeviceError, match=complaint):
        d.Calibration.load(tmp_path / "c.json")


def test_a_fit_without_numbers_is_stored(tmp_path: Path) -> None:
    fit = whole_record().fit
    assert fit is not None
    nan = fit.model_copy(update={"unexplained": float("nan"), "fits": False})
    record_of(device(), fit=nan).save(tmp_path / "c.json")
    again = d.Calibration.load(tmp_path / "c.json")
    assert again.fit is not None
    assert again.fit.unexplained != again.fit.unexplained
    assert "NaN" not in (tmp_path / "c.json").read_text()
