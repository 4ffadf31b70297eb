"""Test ``--out`` on the commands that write files and folders."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from astralora.cli.output import check_folder, new_folder
from astralora.common.errors import ConfigurationError
from astralora.devices import Session

SMALL = ("--in-features", 4, "--out-features", 4)

FILE_COMMANDS: dict[str, tuple[object, ...]] = {
    "plan": ("plan", "--epochs", 1),
    "check": ("check", "--device", "matvec", *SMALL, "--only", "spec"),
    "calibrate": ("calibrate", "--device", "slm", *SMALL),
    "emulate": ("emulate", "--device", "matvec", *SMALL),
    "report": ("report", "chip.cal.json"),
}


@pytest.mark.parametrize("name", FILE_COMMANDS)
@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("nowhere/x.json", "nowhere/x.json cannot be written: there is no folder nowhere"),
        ("folder", "folder cannot be written: it is a folder; name a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_spent(
    name: str, path: str, complaint: str, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the device was opened")

    monkeypatch.setattr(Session, "open", refuse)
    (tmp_path / "folder").mkdir()
    run = command(*FILE_COMMANDS[name], "--out", path)
    assert run.exit_code == 1
    assert run.stderr.strip() == f"error: {complaint}"
    assert run.stdout == ""


@pytest.mark.parametrize("arguments", [("train",), ("bench", "session")])
def test_a_folder_that_cannot_be_made_is_refused(arguments: tuple[str, ...], command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = command(*arguments, "--out", "file/run")
    assert run.exit_code == 1
    assert "file/run cannot be made: " in run.stderr
    assert "file is a file; name a folder" in " ".join(run.stderr.split())


def test_a_folder_is_made_with_those_above_it(command: Any, tmp_path: Path) -> None:
    sizes = ("--size", 4, "--batch-size", 2, "--rounds", 10)
    run = command("bench", "session", *sizes, "--out", "new/folder", "--json")
    assert run.exit_code == 0, run.stderr
    assert json.loads((tmp_path / "new" / "folder" / "session.json").read_text()) == json.loads(run.stdout)
    assert command("bench", "session", *sizes).exit_code == 0
    assert [path.name[:14] for path in (tmp_path / "runs").iterdir()] == ["bench-session-"]
    check_folder(None)


def test_new_folders_of_the_same_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(new_folder, ["run"] * 24))
    assert len(set(folders)) == 24
    assert all(folder.is_dir() and folder.parent == Path("runs") for folder in folders)


def test_a_refused_run_leaves_no_folder(command: Any, tmp_path: Path) -> None:
    assert command("train", "--device", "mmr").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_of_all_runs_is_reported(command: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    run = command("train")
    assert run.exit_code == 1
    assert "cannot be made: File exists" in run.stderr


def test_the_ending_decides_between_page_and_data_of_a_check(command: Any, tmp_path: Path) -> None:
    (tmp_path / "check.html").write_text("an earlier page")
    for ending in ("json", "html"):
        assert command(*FILE_COMMANDS["check"], "-o", f"check.{ending}").exit_code == 0
    assert json.loads((tmp_path / "check.json").read_text())["checks"][0]["check"] == "spec"
    page = (tmp_path / "check.html").read_text()
    assert command("report", "check.json", "--json").exit_code == 0
    assert (tmp_path / "check.html").read_text() == page


def test_the_record_of_a_calibration_is_not_a_page(command: Any) -> None:
    run = command(*FILE_COMMANDS["calibrate"], "--out", "chip.html")
    assert run.exit_code == 1
    assert "name it, for example, chip.cal.json, and write its page with 'astralora report'" in run.stderr


def test_a_plan_is_written(command: Any, tmp_path: Path) -> None:
    run = command(*FILE_COMMANDS["plan"], "--json", "--out", "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(run.stdout)


def test_a_folder_needs_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigurationError, match="no permission to write in"):
        check_folder(tmp_path / "run")
