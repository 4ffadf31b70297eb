"""Test that a run folder is never changed silently: its configuration, its owner, and problems of the disk."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import astralora.devices.registry as registry
from astralora import ConfigurationError
from astralora.training import RunConfig, RunFolder, recall_run, train
from astralora.training.checkpoint import load_state, save_state

from ..children import start

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 500, "in_features": 16, "out_features": 4, "baseline": False}


class Killed(BaseException):
    """End a run as a killed process does: without a checkpoint of the last steps."""


def kill(path: Path, after: int = 4, **changes: Any) -> None:
    """Run three steps for each epoch, and end without a checkpoint after a step."""

    def listener(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == after:
            raise Killed

    with pytest.raises(Killed):
        train(RunFolder(path, RunConfig.load(None, {**SMALL, **changes})), report=False, listener=listener)


def resume(path: Path) -> Any:
    return train(RunFolder.reopen(path), resume=True, report=False)


def edit(file: Path, *replacements: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- configuration ------------------------------------------------------------------------------


def test_another_configuration_is_refused_with_keys_and_both_values(tmp_path: Path) -> None:
    kill(tmp_path)
    edit(tmp_path / "config.toml", ("seed = 0", "seed = 1"), ('name = "mrr"', 'name = "slm"\nseed = 4'))
    before = contents(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        resume(tmp_path)
    message = str(refused.value)
    assert "seed is 1 instead of 0" in message
    assert 'device.name is "slm" instead of "mrr", device.seed is 4 instead of not set' in message
    assert "epochs" not in message
    assert contents(tmp_path) == before


def test_a_run_without_a_state_is_refused_with_another_configuration_too(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(RunFolder(tmp_path, RunConfig.load(None, SMALL)), listener=_raise_killed)
    edit(tmp_path / "config.toml", ("epochs = 2", "epochs = 3"))
    with pytest.raises(ConfigurationError, match="epochs is 3 instead of 2"):
        resume(tmp_path)


def _raise_killed(_: object) -> None:
    raise Killed


def test_comments_order_and_space_do_not_matter(tmp_path: Path) -> None:
    kill(tmp_path)
    file = tmp_path / "config.toml"
    edit(file, ("epochs = 2\n", ""), ('task = "digits"', '# my best run\n\nepochs   =   2\ntask = "digits"'))
    assert resume(tmp_path).summary["steps"] == 6


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_changed_calibration_is_refused(change: str, tmp_path: Path) -> None:
    record = tmp_path / "chip.cal.json"
    record.write_text("{}")
    config = RunConfig.load(None, {**SMALL, "device": {"calibration": str(record)}})
    folder = RunFolder(tmp_path / "run", config)
    folder.begin()
    folder.save({"step": 1})
    folder.release()
    again = RunFolder.reopen(tmp_path / "run")
    assert again.load() == {"step": 1, "lines": 0}
    again.check_inputs()
    if change == "edited":
        record.write_text("{ }")
    else:
        record.unlink()
    assert again.load() is not None, "a report does not need it"
    with pytest.raises(ConfigurationError, match=r"chip.cal.json is missing or has changed since the run in"):
        resume(tmp_path / "run")


def test_many_changes_are_listed_in_part(tmp_path: Path) -> None:
    kill(tmp_path)
    (tmp_path / "config.toml").write_text(RunConfig(task="digits-conv", epochs=3, seed=4).to_toml())
    with pytest.raises(ConfigurationError, match="and 1 more keys differ") as refused:
        resume(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_finished_run_is_not_reported_with_another_configuration(tmp_path: Path, command: Any) -> None:
    train(RunFolder(tmp_path / "run", RunConfig.load(None, SMALL)), report=False)
    edit(tmp_path / "run" / "config.toml", ("epochs = 2", "epochs = 3"))
    for arguments in (("report", "run"), ("train", "--resume", "run")):
        run = command(*arguments)
        assert run.exit_code == 1
        assert "epochs is 3 instead of 2" in run.stderr


# -- contents that are no contents of a run -----------------------------------------------------

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"hello",
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "huge number": b'{"format": ' + b"9" * 10_000 + b"}",
    "wrong encoding": '{"format": 2}'.encode("utf-16"),
    "list": b"[1, 2]",
    "null": b"null",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["config.toml", "summary.json", "checkpoint/state.json"])
def test_a_file_of_other_content_is_refused_in_one_sentence(
    name: str, content: str, tmp_path: Path, command: Any
) -> None:
    train(RunFolder(tmp_path / "run", RunConfig.load(None, {**SMALL, "epochs": 1})), report=False)
    (tmp_path / "run" / name).write_bytes(CONTENTS[content])
    for arguments in (("report", "run"), ("train", "--resume", "run")):
        run = command(*arguments)
        assert run.exit_code == 1, run.stdout
        assert len(run.stderr.strip().splitlines()) == 1
        assert run.stderr.startswith("error: ")


@pytest.mark.parametrize("name", ["config.toml", "summary.json", "metrics.jsonl", "checkpoint/state.json"])
def test_a_folder_in_place_of_a_file_is_refused_in_one_sentence(name: str, tmp_path: Path, command: Any) -> None:
    train(RunFolder(tmp_path / "run", RunConfig.load(None, {**SMALL, "epochs": 1})), report=False)
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    run = command("report", "run")
    assert run.exit_code == 1
    assert len(run.stderr.strip().splitlines()) == 1


def test_an_edited_summary_is_refused(tmp_path: Path) -> None:
    train(RunFolder(tmp_path, RunConfig.load(None, SMALL)), report=False)
    edit(tmp_path / "summary.json", ('"steps": 6', '"steps": 7'))
    with pytest.raises(ConfigurationError, match="does not match its checksum: it is damaged or was edited"):
        recall_run(RunFolder.reopen(tmp_path))


def test_files_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    train(RunFolder(tmp_path, RunConfig.load(None, SMALL)), report=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    del summary["check"]
    (tmp_path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    with pytest.raises(ConfigurationError, match="an earlier astralora wrote it"):
        recall_run(RunFolder.reopen(tmp_path))
    (tmp_path / "summary.json").unlink()
    (tmp_path / "checkpoint" / "state.json").write_text('{"format": 1, "tensors": "x", "state": {}}')
    with pytest.raises(ConfigurationError, match="has format 1, and this astralora reads format 2"):
        resume(tmp_path)


def test_the_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    kill(tmp_path)
    save_state(tmp_path / "checkpoint", {"step": 3})
    with pytest.raises(ConfigurationError, match="is not the checkpoint of a run"):
        resume(tmp_path)


# -- damaged metrics ----------------------------------------------------------------------------


def test_a_damaged_line_is_reported_and_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(RunFolder(tmp_path / "whole", RunConfig.load(None, SMALL)), report=False)
    kill(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"test_accuracy", b"best_accuracy")  # the record of the first epoch
    file.write_bytes(b"".join(lines))
    resumed = resume(tmp_path / "run")
    sentence = "line 4 of metrics.jsonl is damaged or missing, and was left out"
    assert sentence in caplog.text
    assert resumed.damage == sentence
    assert resumed.summary["damaged_lines"] == 1
    assert whole.summary["damaged_lines"] == 0
    for what in ("epochs", "test_accuracy", "best_test_accuracy", "steps"):
        assert resumed.summary[what] == whole.summary[what]
    assert len(resumed.metrics) == len(whole.metrics) - 1
    again = recall_run(RunFolder.reopen(tmp_path / "run"))
    assert again.damage == sentence


def test_the_report_tells_how_many_lines_are_damaged(tmp_path: Path, command: Any) -> None:
    train(RunFolder(tmp_path / "run", RunConfig.load(None, SMALL)), report=False)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"step": 2,', b'"step": 3,').replace(b'"step": 5,', b'"step": 4,'))
    assert command("report", "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "2 lines of metrics.jsonl are damaged or missing, and were left out: 2 and 6." in page


# -- owners -------------------------------------------------------------------------------------


def test_a_run_that_is_going_on_is_neither_resumed_nor_overwritten(tmp_path: Path, command: Any) -> None:
    refusals = []

    def listener(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == 4:
            before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
            for arguments in (("--resume", "run"), ("-o", "run", "--epochs", 1)):
                refusals.append(command("train", *arguments))
                assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before

    config = RunConfig.load(None, SMALL)
    whole = train(RunFolder(tmp_path / "run", config), report=False, listener=listener)
    assert whole.summary["steps"] == 6
    for refusal in refusals:
        assert refusal.exit_code == 1
        assert f"run is in use by process {os.getpid()} on host " in refusal.stderr
        assert len(refusal.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "run").glob(".lock*"))


RESUME = """
import sys, time
from pathlib import Path
from astralora.cli.app import main
while not Path("go").exists():
    time.sleep(0.01)
sys.argv = ["astralora", "train", "--resume", "run", "--json"]
main()
"""


@pytest.mark.parametrize("processes", [2, pytest.param(6, marks=pytest.mark.campaign)])
def test_of_processes_that_resume_at_once_exactly_one_runs(processes: int, tmp_path: Path) -> None:
    kill(tmp_path / "run", epochs=400)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    children = [start([sys.executable, "-c", RESUME], cwd=tmp_path, **pipes) for _ in range(processes)]
    (tmp_path / "go").touch()
    refused: list[Any] = []
    try:
        while len(refused) < processes - 1:
            ended = [child for child in children if child.poll() is not None and child not in refused]
            refused += ended
            time.sleep(0.01)
        running = [child for child in children if child.poll() is None]
        assert len(running) == 1
        metrics = tmp_path / "run" / "metrics.jsonl"
        before = len(metrics.read_bytes())
        deadline = time.monotonic() + 120
        while len(metrics.read_bytes()) < before + 1000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for child in children:
            child.terminate()
    for child in refused:
        _, complaint = child.communicate(timeout=60)
        assert child.returncode == 1
        assert f"run is in use by process {running[0].pid} on host " in complaint
        assert len(complaint.strip().splitlines()) == 1
    assert "Resume with: " in running[0].communicate(timeout=60)[1]
    found = RunFolder.reopen(tmp_path / "run").metrics()
    assert not found.damaged
    steps = [record["step"] for record in found.records if record["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


# -- folders that killed processes left ---------------------------------------------------------


@pytest.mark.parametrize("stage", ["lock", "draft", "checkpoint folder", "tensors", "checkpoint"])
def test_a_folder_whose_run_never_began_can_be_used(stage: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    (folder / ".lock").write_text("")
    if stage == "draft":
        (folder / "config.toml.tmp").write_text('task = "dig')
        (folder / ".config.toml.0123456789abcdef.tmp").write_text('task = "dig')
    if stage in ("tensors", "checkpoint"):
        blank = RunFolder(tmp_path / "other", RunConfig())
        blank.begin()
        blank.release()
        shutil.copytree(tmp_path / "other" / "checkpoint", checkpoint, dirs_exist_ok=True)
    if stage == "tensors":
        (checkpoint / "state.json").unlink()
    if stage == "lock":
        checkpoint.rmdir()
    assert train(RunFolder(folder, RunConfig.load(None, SMALL)), report=False).summary["steps"] == 6
    assert not [file for file in folder.rglob("*") if file.name.endswith(".tmp") or file.name.startswith(".lock")]


@pytest.mark.parametrize("name", ["thesis.tex", "thesis.tmp", "checkpoint/notes.txt", "metrics.jsonl"])
def test_a_folder_with_other_files_is_not_used(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    with pytest.raises(ConfigurationError, match="is not an empty folder"):
        train(RunFolder(tmp_path, RunConfig.load(None, SMALL)))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / name]


def test_the_checkpoint_of_a_lost_run_is_not_overwritten(tmp_path: Path) -> None:
    kill(tmp_path)
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "tensorboard", ignore_errors=True)
    with pytest.raises(ConfigurationError, match="is not an empty folder"):
        train(RunFolder(tmp_path, RunConfig.load(None, SMALL)))
    assert load_state(tmp_path / "checkpoint") is not None


def test_drafts_of_killed_processes_are_removed_by_the_next_start(tmp_path: Path) -> None:
    kill(tmp_path)
    drafts = [".metrics.jsonl.0123456789abcdef.tmp", "config.toml.tmp", "checkpoint/.state.json.0123.tmp"]
    for name in [*drafts, "mine.tmp"]:
        (tmp_path / name).write_text("")
    resume(tmp_path)
    assert not any((tmp_path / name).exists() for name in drafts)
    assert (tmp_path / "mine.tmp").exists()


# -- reports ------------------------------------------------------------------------------------


def test_a_copied_run_is_reported_without_its_device(
    tmp_path: Path, matrix_device: Any, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    def factory(in_features: int, out_features: int) -> Any:
        return matrix_device(in_features, out_features, control_unit="rad", serial_number="42")

    monkeypatch.setattr(registry, "_registered", {"chip": factory})
    train(RunFolder(tmp_path / "run", RunConfig.load(None, {**SMALL, "device": {"name": "chip"}})), report=False)
    monkeypatch.setattr(registry, "_registered", {})
    shutil.move(tmp_path / "run", tmp_path / "copy")
    assert command("report", "copy").exit_code == 0
    recalled = recall_run(RunFolder.reopen(tmp_path / "copy"))
    assert recalled.control_unit == "rad"
    (device,) = recalled.summary["devices"].values()
    assert device["serial_number"] == "42"
    assert (device["in_features"], device["out_features"], device["num_controls"]) == (16, 4, 64)
    assert len(recalled.controls_after[0]) == 64
    finished = command("train", "--resume", "copy", "--json")
    assert finished.exit_code == 0
    assert json.loads(finished.stdout) == recalled.summary


# -- disks --------------------------------------------------------------------------------------

CHILD = """
import os, resource, shutil, sys
from pathlib import Path
from astralora.cli import train as command
from astralora.cli.app import main
import astralora.training.trainer as trainer

run, event = Path("run"), sys.argv[1]
step = 4

def full(file):
    Path(file).rename("kept")
    Path(file).symlink_to("/dev/full")

def harm():
    match event:
        case "metrics": full(run / "metrics.jsonl")
        case "checkpoint":
            shutil.move(run / "checkpoint", "kept")
            (run / "checkpoint").write_text("")
        case "limit": resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        case "removed": shutil.rmtree(run)
        case "replaced":
            run.rename("kept")
            run.mkdir()

original = trainer.Fit.train_step
def train_step(self, rows):
    if self.step == step:
        harm()
    return original(self, rows)
trainer.Fit.train_step = train_step
import atexit
from astralora.simulators.simulator import SimulatedDevice
close = SimulatedDevice.close
def closed(self):
    close(self)
    print("closed", flush=True)
SimulatedDevice.close = closed
sys.argv = ["astralora", "train", "--out", "run", "--epochs", "2", "--batch-size", "500", "--no-baseline",
            "--in-features", "16", "--out-features", "4"]
main()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and limits of processes")
@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        pytest.param("metrics", "run/metrics.jsonl cannot be written: No space left", marks=pytest.mark.campaign),
        pytest.param("checkpoint", "run/checkpoint cannot be written: ", marks=pytest.mark.campaign),
        ("limit", "run/metrics.jsonl cannot be written: File too large; mend this, and resume the run"),
        pytest.param("removed", "run was removed or replaced while its run wrote into it", marks=pytest.mark.campaign),
        pytest.param("replaced", "run was removed or replaced while its run wrote into it", marks=pytest.mark.campaign),
    ],
)
def test_a_problem_of_the_disk_ends_the_run_in_one_sentence(
    event: str, complaint: str, tmp_path: Path, uninterrupted: Callable[[], Any]
) -> None:
    child = start([sys.executable, "-c", CHILD, event], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last
    assert "Traceback" not in err
    assert "closed" in out, "the chip is in its safe state"
    if event == "removed":
        assert not (tmp_path / "run").exists()
        return
    if event == "replaced":
        assert list((tmp_path / "run").iterdir()) == []
        (tmp_path / "run").rmdir()
        shutil.move(tmp_path / "kept", tmp_path / "run")
    if event == "metrics":
        with pytest.raises(ConfigurationError, match=r"metrics.jsonl cannot be read: it is not a file"):
            resume(tmp_path / "run")
        (tmp_path / "kept").rename(tmp_path / "run" / "metrics.jsonl")
    if event == "checkpoint":
        (tmp_path / "run" / "checkpoint").unlink()
        shutil.move(tmp_path / "kept", tmp_path / "run" / "checkpoint")
    resumed = resume(tmp_path / "run")
    assert resumed.controls_after[0].equal(uninterrupted().controls_after[0])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    done: list[Any] = []

    def run() -> Any:
        if not done:
            path = tmp_path_factory.mktemp("whole") / "run"
            done.append(train(RunFolder(path, RunConfig.load(None, SMALL)), report=False))
        return done[0]

    return run
