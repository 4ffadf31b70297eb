"""Test calibration on the command line: calibrate, train with the calibration, report."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from astralora.cli.app import app

SMALL = ("--in-features", "16", "--out-features", "16")


def invoke(*arguments: object) -> "tuple[int, str, str]":
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "chip.cal.json"
    code, printed, _ = invoke("calibrate", "--device", "mzi", *SMALL, "--budget-programs", 30, "-o", path)
    assert code == 0
    assert "The law fits" in printed
    return path


def test_a_calibration_is_printed_as_json(tmp_path: Path) -> None:
    code, printed, _ = invoke(
        "calibrate", "--device", "slm", *SMALL, "--budget-programs", 20, "--json", "-o", tmp_path / "c.json"
    )
    assert code == 0
    found = json.loads(printed)
    assert found["fit"]["fits"]
    assert found["spent"]["programs"] == 20


def test_a_law_that_does_not_fit_makes_the_exit_code_one(tmp_path: Path) -> None:
    code, _, complaint = invoke(
        "calibrate", "--device", "slm", *SMALL, "--model", "matvec", "--budget-programs", 20, "-o", tmp_path / "c.json"
    )
    assert code == 1
    assert "The law does not fit" in complaint


def test_a_chip_of_unknown_law_is_measured_without_one(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    code, printed, _ = invoke(
        "calibrate", "--device", "slm", *SMALL, "--model", "none", "--budget-programs", 60, "-o", path
    )
    assert code == 0
    assert "One output of one query has a noise of" in printed
    assert json.loads(path.read_text())["fit"] is None
    assert invoke("report", path)[0] == 0
    page = (tmp_path / "c.html").read_text()
    assert "No law was fitted" in page
    assert "One output of one query has a noise of" in page


def test_measurements_of_a_check_are_not_repeated(tmp_path: Path) -> None:
    _, printed, _ = invoke("check", "--device", "slm", "--only", "ramp", "--json", *SMALL)
    (tmp_path / "check.json").write_text(printed)
    known = ("--known", tmp_path / "check.json", "--budget-programs", 20, "-o", tmp_path / "c.json", "--json")
    code, printed, _ = invoke("calibrate", "--device", "slm", *SMALL, *known)
    assert code == 0
    assert json.loads(printed)["spent"]["programs"] == 20
    assert {finding["name"] for finding in json.loads(printed)["findings"]} >= {"noise_std", "input_levels"}


def test_a_calibration_has_a_page(record: Path, tmp_path: Path) -> None:
    code, printed, _ = invoke("report", record, "-o", tmp_path / "page.html")
    assert code == 0
    assert "page.html" in printed
    assert "The law fits" in (tmp_path / "page.html").read_text()


def test_a_check_has_a_page(tmp_path: Path) -> None:
    _, printed, _ = invoke("check", "--device", "slm", "--only", "noise", "--only", "spec", "--json", *SMALL)
    (tmp_path / "check.json").write_text(printed)
    assert invoke("report", tmp_path / "check.json")[0] == 0
    assert "One output of one query" in (tmp_path / "check.html").read_text()


def test_the_page_of_a_run_can_be_written_again(tmp_path: Path) -> None:
    options = ("--in-features", 16, "--out-features", 8, "--epochs", 1, "--batch-size", 400, "--no-baseline")
    assert invoke("train", *options, "-o", tmp_path / "run")[0] == 0
    first = (tmp_path / "run" / "report.html").read_bytes()
    assert invoke("report", tmp_path / "run", "-o", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("report", "nothing.json"), "nothing.json cannot be read: No such file or directory"),
        (("calibrate", "--device", "mzi", "--budget-programs", 8, "--budget-vectors", 4), "needs at least 3 programs"),
        (
            ("calibrate", "--device", "mzi", "--known", "pyproject.toml"),
            "the result of 'astralora check' pyproject.toml is not JSON",
        ),
        (("calibrate", "--device", "mzi", "--model", "colour"), "there is no device named 'colour'"),
        (("calibrate", "--device", "mzi", "--model", "slm"), "has 256 controls at 16 x 16, but 'mzi' has 240"),
        (("train", "--calibration", "nothing.json"), "the calibration nothing.json cannot be read"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(arguments: tuple[object, ...], sentence: str) -> None:
    code, _, complaint = invoke(*arguments)
    assert code == 1
    assert sentence in complaint
    assert complaint.count("error:") == 1


def test_the_calibration_of_another_chip_is_refused_before_a_run_begins(record: Path, tmp_path: Path) -> None:
    code, _, complaint = invoke(
        "train", "--device", "mzi", *SMALL, "--seed", 1, "--calibration", record, "-o", tmp_path / "r"
    )
    assert code == 1
    assert "the calibration was taken on sim-mzi-16x16-0" in complaint
    assert not (tmp_path / "r").exists()


def test_a_plan_reports_what_a_calibration_would_save() -> None:
    code, printed, _ = invoke(
        "plan", "--device", "mzi", "--in-features", 32, "--out-features", 32, "--epochs", 1, "--json"
    )
    assert code == 0
    assert "'astralora calibrate' needs about 64 programs once" in json.loads(printed)["expense"]
