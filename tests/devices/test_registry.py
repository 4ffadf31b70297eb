"""Test registration of devices and the search for them by name."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import astralora.devices.registry as registry
from astralora.devices import DeviceError, find_device, list_devices, open_device, register_device


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_finds_the_simulators_by_entry_point() -> None:
    entry = find_device("mrr")
    assert entry.source.startswith("astralora ")
    assert entry.summary.startswith("Simulate a bank of microring")
    assert {"matvec", "slm", "mrr", "mzi"} <= {entry.name for entry in list_devices()}


def test_opens_a_device_registered_in_a_notebook(matrix_device: Any) -> None:
    register_device("my-chip", matrix_device)
    with open_device("my-chip", in_features=8, out_features=2) as session:
        assert session.spec.in_features == 8
        device: Any = session.device
        assert device.log == ["open"]


def test_a_taken_name_is_refused_unless_replace_is_set(matrix_device: Any) -> None:
    with pytest.raises(ValueError, match="exists already"):
        register_device("mrr", matrix_device)
    register_device("mrr", matrix_device, replace=True)
    assert find_device("mrr").source == "this process"


CELL = """
def make():
    '''{summary}'''
class Chip:
    '''{summary}'''
"""


@pytest.mark.parametrize("factory", ["make", "Chip"])
def test_a_notebook_cell_may_run_twice(factory: str) -> None:
    for summary in ("First", "Second"):
        cell: dict[str, Any] = {"__name__": "__main__"}
        exec(CELL.format(summary=summary), cell)
        register_device("my-chip", cell[factory])
    assert find_device("my-chip").summary == "Second"


def test_another_factory_does_not_replace_a_registered_one() -> None:
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(CELL.format(summary=""), cell)
    register_device("my-chip", cell["make"])
    elsewhere: dict[str, Any] = {"__name__": "other"}
    exec(CELL.format(summary=""), elsewhere)
    for another in (cell["Chip"], elsewhere["make"], partial(cell["make"])):
        with pytest.raises(ValueError, match="'my-chip' exists already; pass replace=True to replace it"):
            register_device("my-chip", another)


def test_lambdas_and_partials_are_the_same_only_as_one_object() -> None:
    def factories() -> list[Any]:
        return [lambda: None, partial(dict)]

    for number, factory in enumerate(factories()):
        register_device(f"chip-{number}", factory)
        register_device(f"chip-{number}", factory)
        for another in factories():
            with pytest.raises(ValueError, match="exists already"):
                register_device(f"chip-{number}", another)


def test_an_installed_name_is_refused_however_often() -> None:
    factory = find_device("mrr").factory
    assert factory is not None
    for _ in range(2):
        with pytest.raises(ValueError, match="exists already"):
            register_device("mrr", factory)


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
def test_reports_in_one_sentence_why_a_device_cannot_be_made(name: str, options: Any, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint) as error:
        open_device(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (lambda: 1 / 0, "its factory failed with ZeroDivisionError: division by zero"),
        (lambda: None, "its factory made a NoneType, which is not a Device"),
        (dict, "its factory made a dict, which is not a Device"),
    ],
)
def test_any_failure_of_a_factory_is_reported_in_one_sentence(factory: Any, complaint: str) -> None:
    register_device("odd", factory)
    with pytest.raises(DeviceError, match=complaint):
        open_device("odd")


def test_a_broken_plugin_is_listed_with_its_reason_and_the_others_work(tmp_path: Path) -> None:
    # A real installed distribution, as pip would leave it.
    (tmp_path / "broken_chip.py").write_text("import no_such_vendor_sdk\n")
    (tmp_path / "exiting_chip.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "odd_chip.py").write_text("device = 42\n")
    info = tmp_path / "lab_chips-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-chips\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[astralora.devices]\nbroken = broken_chip:Chip\n"
        "exiting = exiting_chip:x\nodd = odd_chip:device\nmissing = odd_chip:nothing\n"
    )
    code = (
        "import devices as d\n"
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
    assert "exiting | lab-chips 1.0 | SystemExit: 3" in lines
    assert "odd | lab-chips 1.0 | odd_chip:device is of type int; it must be a function or a class" in lines
    assert any(line.startswith("missing | lab-chips 1.0 | AttributeError") for line in lines)
    assert any(line.startswith("slm | astralora") and line.endswith("None") for line in lines)
    assert "cannot be loaded from lab-chips 1.0: ModuleNotFoundError" in lines[-1]
