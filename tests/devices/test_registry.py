import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import astralora.devices.registry as registry
from astralora.devices import DeviceError, find_device, list_devices, open_device, register_device


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_finds_the_simulators_by_entry_point() -> None:
    entry = find_device("mrr")
    assert entry.source.startswith("astralora ")
    assert entry.summary.startswith("Microring")
    assert {"matvec", "slm", "mrr", "mzi"} <= {entry.name for entry in list_devices()}


def test_opens_a_device_registered_in_a_notebook(matrix_device: Any) -> None:
    register_device("my-chip", matrix_device)
    with open_device("my-chip", in_features=8, out_features=2) as session:
        device: Any = session.device
        assert session.spec.in_features == 8
        assert device.log == ["open"]


def test_refuses_a_registered_name_unless_told_to_replace_it(matrix_device: Any) -> None:
    with pytest.raises(ValueError, match="exists already"):
        register_device("mrr", matrix_device)
    register_device("mrr", matrix_device, replace=True)
    assert find_device("mrr").source == "this process"


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("mmr", {}, "no device named 'mmr'; did you mean 'mrr'"),
        ("telescope", {}, "known are .*matvec"),
        ("mrr", {}, "'in_features'; its options are in_features, out_features, impairments"),
        ("mrr", {"in_features": 4, "out_features": 4, "colour": 1}, "option colour"),
        ("mrr", {"in_features": 4, "out_features": 4, "a": 1.5}, "option a: .*less than 1"),
        ("mrr", {"in_features": 4, "out_features": 4, "impairments": "lap"}, "known are ideal, lab, harsh"),
    ],
)
def test_explains_in_one_sentence_why_a_device_cannot_be_made(name: str, options: Any, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint) as error:
        open_device(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (lambda: 1 / 0, "its factory failed with ZeroDivisionError: division by zero"),
        (lambda: None, "its factory made a NoneType, which is no Device"),
        (dict, "its factory made a dict, which is no Device"),
    ],
)
def test_any_failure_of_a_factory_is_a_device_error(factory: Any, complaint: str) -> None:
    register_device("odd", factory)
    with pytest.raises(DeviceError, match=complaint):
        open_device("odd")


def test_a_broken_plugin_is_listed_with_its_reason_and_other_devices_work(tmp_path: Path) -> None:
    # The files of a distribution that pip has installed.
    (tmp_path / "broken_chip.py").write_text("import no_such_vendor_sdk\n")
    (tmp_path / "rude_chip.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "odd_chip.py").write_text("device = 42\n")
    info = tmp_path / "lab_chips-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-chips\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[astralora.devices]\nbroken = broken_chip:Chip\n"
        "rude = rude_chip:x\nodd = odd_chip:device\nmissing = odd_chip:nothing\n"
    )
    code = (
        "import astralora.devices as d\n"
        "for entry in d.list_devices(): print(entry.name, '|', entry.source, '|', entry.problem)\n"
        "d.open_device('slm', in_features=2, out_features=2)\n"
        "try: d.open_device('broken')\n"
        "except d.DeviceError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert "broken | lab-chips 1.0 | ModuleNotFoundError: No module named 'no_such_vendor_sdk'" in lines
    assert "rude | lab-chips 1.0 | SystemExit: 3" in lines
    assert "odd | lab-chips 1.0 | odd_chip:device is a int, not something that makes a device" in lines
    assert any(line.startswith("missing | lab-chips 1.0 | AttributeError") for line in lines)
    assert any(line.startswith("slm | astralora") and line.endswith("None") for line in lines)
    assert "cannot be loaded from lab-chips 1.0: ModuleNotFoundError" in lines[-1]
