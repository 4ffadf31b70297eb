"""Test that a calibration in several parts records the cost of all of them, and stays within its budget."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import astralora as al
from astralora.calibration.costs import CostRecord, Spent
from astralora.simulators import KINDS, Impairments, device_factory

from ..children import start

BUDGET = al.Budget(programs=12, vectors=80)
LAW = {"input_levels": 255, "output_levels": 255, "output_noise_fraction": 0.02}


def chip(**law: Any) -> Any:
    return device_factory(KINDS["slm"])(4, 4, impairments=Impairments(**{**LAW, **law}))


def stop_after(settings: int) -> Any:
    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "measured" and event["done"] == settings:
            raise KeyboardInterrupt

    return listen


class Interrupted(al.devices.DeviceWrapper):
    """Interrupt a chip within a query, after the program was counted and before the answer is saved."""

    def __init__(self, device: Any, queries: int) -> None:
        super().__init__(device)
        self._left = queries

    def query(self, inputs: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().query(inputs)


def calibrate(
    session: al.Session, path: Path, budget: al.Budget | None = BUDGET, **options: Any
) -> al.devices.Calibration:
    return al.calibrate(session, budget, path=path, steps=5, **options)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_calibration_in_one_part_records_what_its_session_has_spent(tmp_path: Path) -> None:
    session = al.Session(chip())
    record = calibrate(session, tmp_path / "c.json")
    usage = session.usage
    assert record.spent == {"programs": usage.programs, "queries": usage.queries, "vectors": usage.vectors}
    assert len(files(tmp_path)) == 2


def test_a_resumed_calibration_records_the_cost_of_all_parts(tmp_path: Path) -> None:
    sessions = [al.Session(chip()) for _ in range(3)]
    for session, done in zip(sessions, (5, 9), strict=False):
        with pytest.raises(KeyboardInterrupt):
            calibrate(session, tmp_path / "c.json", listener=stop_after(done))
    kept = json.loads((tmp_path / "c.json.cost.part").read_text())["content"]
    assert kept["programs"] == 9
    record = calibrate(sessions[2], tmp_path / "c.json")
    for what in ("programs", "queries", "vectors"):
        assert record.spent[what] == sum(getattr(session.usage, what) for session in sessions)
    assert record.spent["programs"] == 12
    assert record.wall_seconds > kept["wall_seconds"] > 0
    assert len(files(tmp_path)) == 2, "the files of the unfinished calibration are gone"


def test_what_an_interruption_has_lost_is_taken_from_the_last_settings(tmp_path: Path) -> None:
    first, second = al.Session(Interrupted(chip(), queries=4)), al.Session(chip())
    with pytest.raises(KeyboardInterrupt):
        calibrate(first, tmp_path / "c.json")
    assert first.usage.programs == 5, "the fifth setting was programmed, and its answer was not saved"
    record = calibrate(second, tmp_path / "c.json")
    assert first.usage.programs + second.usage.programs == record.spent["programs"] <= 12
    assert first.usage.vectors + second.usage.vectors == record.spent["vectors"] <= 80
    assert record.fit is not None
    assert record.fit.settings + record.fit.held_out_settings == 11


def test_without_a_budget_of_the_user_every_setting_is_measured(tmp_path: Path) -> None:
    first, second = al.Session(Interrupted(chip(), queries=4)), al.Session(chip())
    with pytest.raises(KeyboardInterrupt):
        calibrate(first, tmp_path / "c.json", None)
    record = calibrate(second, tmp_path / "c.json", None)
    assert record.fit is not None
    assert record.fit.settings + record.fit.held_out_settings == 64
    assert record.spent["programs"] == 65


def test_a_budget_that_interruptions_have_used_up_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    budget = al.Budget(programs=3, vectors=30)
    for _ in range(2):
        session = al.Session(Interrupted(chip(), queries=0))
        with pytest.raises((KeyboardInterrupt, al.BudgetExceeded)):
            calibrate(session, tmp_path / "c.json", budget)
    session = al.Session(chip())
    with pytest.raises(al.BudgetExceeded, match=r"have left 2 programs and \d+ vectors .* needs 3 settings"):
        calibrate(session, tmp_path / "c.json", budget)
    assert session.usage.programs == 0


def test_direct_measurements_that_were_lost_count(tmp_path: Path) -> None:
    quiet = {"output_noise_fraction": 0.0}
    first, second = al.Session(Interrupted(chip(**quiet), queries=3)), al.Session(chip(**quiet))
    with pytest.raises(KeyboardInterrupt):
        calibrate(first, tmp_path / "c.json", None, characterise=True)
    assert files(tmp_path) == ["c.json.cost.part"]
    record = calibrate(second, tmp_path / "c.json", None, characterise=True)
    assert first.usage.vectors > 0
    assert record.spent["vectors"] == first.usage.vectors + second.usage.vectors


def test_direct_measurements_that_were_saved_count_without_the_file_of_the_cost(tmp_path: Path) -> None:
    first, second = al.Session(chip()), al.Session(chip())
    with pytest.raises(KeyboardInterrupt):
        calibrate(first, tmp_path / "c.json", None, characterise=True, listener=stop_after(2))
    (tmp_path / "c.json.cost.part").unlink()
    record = calibrate(second, tmp_path / "c.json", None, characterise=True)
    assert record.spent["vectors"] == first.usage.vectors + second.usage.vectors


def test_a_refused_calibration_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(al.BudgetExceeded):
        calibrate(al.Session(chip(), al.Budget(programs=5)), tmp_path / "c.json")
    assert files(tmp_path) == []


_CHILD = """
import os, signal, sys
import astralora as al
from astralora.simulators import KINDS, Impairments, device_factory
chip = device_factory(KINDS["slm"])(4, 4, impairments=Impairments(**{law}))
def kill(event):
    if event["event"] == "measured" and event["done"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
al.calibrate(chip, al.Budget(programs=12, vectors=80), path=sys.argv[1], steps=5, listener=kill)
"""


def test_after_a_kill_the_cost_is_that_of_the_saved_settings(tmp_path: Path) -> None:
    code = _CHILD.format(law=LAW)
    child = start([sys.executable, "-c", code, tmp_path / "c.json"])
    assert child.wait(timeout=120) == -signal.SIGKILL
    session = al.Session(chip())
    record = calibrate(session, tmp_path / "c.json")
    assert session.usage.programs == 5
    assert record.spent["programs"] == 12


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty, where JSON is expected"),
        ("{}", "is damaged: its hash differs from the saved one; delete the file to begin again"),
        ('{"content": {"programs": 1}, "sha256": ""}', "is damaged: its hash differs"),
    ],
)
def test_a_damaged_cost_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "c.json.cost.part").write_text(content)
    session = al.Session(chip())
    with pytest.raises(al.ConfigurationError, match=complaint):
        calibrate(session, tmp_path / "c.json")
    assert session.usage.programs == 0


def test_the_cost_of_another_seed_or_budget_does_not_count(tmp_path: Path) -> None:
    session = al.Session(chip())
    session.open()
    record = CostRecord(session, tmp_path / "cost", 1, BUDGET)
    record.include(Spent(programs=3))
    record.save()
    assert CostRecord(session, tmp_path / "cost", 1, BUDGET).earlier.programs == 3
    assert CostRecord(session, tmp_path / "cost", 2, BUDGET).earlier == Spent()
    assert CostRecord(session, tmp_path / "cost", 1, al.Budget()).earlier == Spent()
