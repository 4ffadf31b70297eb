"""Test the commands as a user types them: processes with their streams and exit codes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from astralora.cli.app import app

from ..children import start

SMALL = ["--epochs", "2", "--batch-size", "400", "--in-features", "16", "--out-features", "8"]


def astralora(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which has imported torch already."""
    # A process prints warnings; pytest makes errors of them.
    with contextlib.chdir(cwd), warnings.catch_warnings(action="ignore"):
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def astralora_process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "astralora", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", [(), ("train",), ("plan",), ("devices",), ("bench",),
     ("bench", "session"), ("bench", "efficiency"), ("bench", "fidelity"), ("bench", "overhead"),
     ("bench", "lowrank"), ("bench", "refresh")])  # fmt: skip
def test_every_command_explains_itself(command: tuple[str, ...], tmp_path: Path) -> None:
    run = astralora(*command, "--help", cwd=tmp_path)
    assert run.returncode == 0
    assert "Usage:" in run.stdout
    if command and command != ("bench",):
        assert f"Example: astralora {' '.join(command)}" in run.stdout


def test_train_writes_a_run_folder_and_prints_its_path(tmp_path: Path) -> None:
    run = astralora_process("train", *SMALL, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"runs/{folder.name}/report.html" in run.stdout
    assert {path.name for path in folder.iterdir()} >= {
        "config.toml", "metrics.jsonl", "summary.json", "checkpoint", "report.html",
        "accuracy_by_epoch.png", "accuracy_by_programs.png", "surrogate_residual.png", "controls.png",
    }  # fmt: skip
    for word in ("test accuracy", "digital baseline", "programs", "vectors", "time on hardware"):
        assert word in run.stdout
    assert re.search(r"epoch +2 +test +[\d.]+ % +10 programs", run.stderr), "progress belongs on standard error"


def test_json_is_the_only_text_on_standard_output(tmp_path: Path) -> None:
    run = astralora("train", *SMALL, "--json", "--out", "a run", cwd=tmp_path)
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert json.loads(run.stdout) == {key: value for key, value in summary.items() if key != "check"}
    planned = json.loads(astralora_process("plan", *SMALL, "--json", cwd=tmp_path).stdout)
    assert planned["programs"] == json.loads(run.stdout)["programs"]
    assert planned["by_purpose"]["controls"]["programs"] == 1
    listed = json.loads(astralora("devices", "--json", cwd=tmp_path).stdout)
    assert {"matvec", "slm", "mrr", "mzi"} <= {entry["name"] for entry in listed}


def test_a_run_can_be_repeated_from_its_own_config(tmp_path: Path) -> None:
    first = astralora("train", *SMALL, "--seed", "3", "--json", "--out", "one", cwd=tmp_path)
    again = astralora("train", "--config", "one/config.toml", "--json", "--out", "two", cwd=tmp_path)
    drop = {"wall_seconds"}
    a, b = ({k: v for k, v in json.loads(r.stdout).items() if k not in drop} for r in (first, again))
    assert a == b


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--device", "mmr"], "there is no device named 'mmr'; did you mean 'mrr'?"),
        (["plan", "--device", "mmr"], "did you mean 'mrr'?"),
        (["train", "--method", "magic"], "known are auto, paper, twin, exact"),
        (["train", "--budget-programs", "1"], "startup and first step alone take 2 programs"),
        (["train", "--step", "0.001"], "below one control level"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["train", "--set", "colour=[red]"], "colour"),
        (["train", "--resume", "nowhere"], "nowhere holds no run"),
        (["train", "--resume", "nowhere", "--epochs", "3"], "--resume continues a run unchanged"),
    ],
)
def test_a_mistake_gets_one_sentence_and_no_traceback(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    run = astralora(*arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert complaint in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stdout == ""
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_debug_shows_where_a_mistake_came_from(tmp_path: Path) -> None:
    assert "Traceback" in astralora_process("plan", "--device", "mmr", "--debug", cwd=tmp_path).stderr


def test_an_interrupted_run_prints_how_to_resume_and_resumes(tmp_path: Path) -> None:
    long = ["--epochs", "20", "--batch-size", "100", "--in-features", "16", "--out-features", "8", "--no-baseline"]
    whole = astralora("train", *long, "--json", "--out", "whole", cwd=tmp_path)
    process = start(
        [sys.executable, "-m", "astralora", "train", *long, "--out", "part 1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    metrics = tmp_path / "part 1" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size > 5_000:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Resume with: astralora train --resume 'part 1'" in complaints
    assert not (tmp_path / "part 1" / "summary.json").exists()
    resumed = astralora("train", "--resume", "part 1", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    drop = {"wall_seconds"}
    a, b = ({k: v for k, v in json.loads(r.stdout).items() if k not in drop} for r in (whole, resumed))
    assert a == b
    finished = astralora("train", "--resume", "part 1", "--json", cwd=tmp_path)
    assert finished.returncode == 0
    assert "complete" in finished.stderr


def test_a_broken_plugin_is_listed_and_the_others_still_work(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "lab_chip-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-chip\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[astralora.devices]\nlab-chip = lab_chip:Chip\n")
    (site / "lab_chip.py").write_text("raise RuntimeError('licence [dongle] not found')\n")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    run = astralora_process("devices", cwd=tmp_path, PYTHONPATH=path)
    assert run.returncode == 0
    assert "RuntimeError: licence [dongle] not found" in run.stdout
    assert "mrr" in run.stdout
    train = astralora_process("train", "--device", "lab-chip", cwd=tmp_path, PYTHONPATH=path)
    assert "cannot be loaded from lab-chip 2.0: RuntimeError: licence [dongle] not found" in train.stderr


def test_the_session_benchmark_reports_a_ratio(tmp_path: Path) -> None:
    run = astralora("bench", "session", "--size", "16", "--batch-size", "4", "--rounds", "20", "--json", cwd=tmp_path)
    (record,) = json.loads(run.stdout)
    expected: dict[str, Any] = {"device": "matvec", "impairments": "ideal", "size": 16, "batch": 4, "rounds": 20}
    assert expected.items() <= record.items()
    assert record["raw_us"] > 0


RECORDS = {
    "efficiency": (
        [
            "--device",
            "slm",
            "--seeds",
            "3",
            "--epochs",
            "1",
            "--size",
            "16x8",
            "--task",
            "digits",
            "--samples",
            "1,2",
        ],
        "device impairments method seed target reached epochs programs vectors",
        3,
    ),
    "fidelity": (
        ["--device", "slm,mzi", "--method", "auto,paper", "--size", "8", "--seeds", "1", "--samples", "2"],
        "device impairments size method programs vectors cosine_controls cosine_inputs",
        4,
    ),
    "overhead": (
        ["--device", "slm", "--method", "auto,exact", "--size", "8,16", "--batch-size", "4", "--cycles", "1"],
        "device impairments size batch method ratio_to_linear",
        4,
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_benchmark_prints_flat_records_and_writes_them_with_a_picture(name: str, tmp_path: Path) -> None:
    options, keys, count = RECORDS[name]
    run = astralora("bench", name, *options, "--json", "--out", "b", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    records = json.loads(run.stdout)
    assert len(records) == count
    for record in records:
        assert set(keys.split()) <= record.keys()
        assert not any(isinstance(value, list | dict) for value in record.values())
    assert json.loads((tmp_path / "b" / f"{name}.json").read_text()) == records
    assert (tmp_path / "b" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_refresh_benchmark_compares_both_ways(tmp_path: Path) -> None:
    options = ["--device", "slm", "--seeds", "0", "--size", "16x8", "--epochs", "1", "--json"]
    run = astralora("bench", "refresh", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    published, ours = json.loads(run.stdout)
    assert (published["refresh"], ours["refresh"]) == (None, "stability")
    assert {"test_accuracy", "vectors", "health"} <= published.keys()
    # Every update of the surrogate in an epoch is one of these three.
    assert ours["refits"] + ours["splits"] + ours["rebuilds"] > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["efficiency", "--method", "magic"], "no method, estimator or surrogate named 'magic'"),
        (["efficiency", "--seeds", "one"], "--seeds takes whole numbers of at least 0, not 'one'"),
        (["efficiency", "--size", "4x4x4"], "--size takes INPUTSxOUTPUTS"),
        (["fidelity", "--device", "mmr"], "did you mean 'mrr'"),
        (["fidelity", "--method", "orthogonal+nothing"], "no surrogate named 'nothing'"),
        (["fidelity", "--device", "mzi", "--method", "elementwise"], "none of these methods suits"),
        (["overhead", "--size", ""], "--size takes whole numbers of at least 1"),
        (["refresh", "--surrogate", "exact"], "takes an option 'refresh'"),
    ],
)
def test_a_mistake_in_a_benchmark_gets_one_sentence(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    run = astralora("bench", *arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())
