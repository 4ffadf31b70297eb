"""Runs of adapters that break off and go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from astralora.adapters.folder import AdapterFolder
from astralora.adapters.run import train_run
from astralora.adapters.settings import AdapterRun
from astralora.cli.app import app
from astralora.training.checkpoint import load_state

STEPS = 14
"""Two epochs of seven steps, 50 texts of 32 bytes by eight."""

MODES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "dynamic": {"dynamic": {"realloc_n": 0.3}},
    "reuse": {"dynamic": {"realloc_n": 0.3, "reuse": True}},
    "random": {"dynamic": {"realloc_n": 0.3}, "scoring": {"proxy": "constant"}},
}


class Stop(Exception):
    """What breaks a run off."""


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder that holds texts with labels."""
    monkeypatch.chdir(tmp_path)
    text = "".join(topics.values())
    rows = [{"text": text[32 * n :][:31], "label": str(text[32 * n].isalpha())} for n in range(62)]
    for name, part in (("a.jsonl", rows[:50]), ("test.jsonl", rows[50:])):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def config_of(mode: str) -> AdapterRun:
    """With dropout of model and adapters, so that the global generators count."""
    common = {
        "model": {"options": {"dropout": 0.1}},
        "data": {"train": "a.jsonl", "test": "test.jsonl", "label": "label", "length": 32},
        "adapters": {"default": {"r": 2, "lora_dropout": 0.1}},
        "training": {"epochs": 2, "checkpoint_steps": 3},
        "scoring": {"batches": 1},
    }
    return AdapterRun.load(None, {**common, **MODES[mode], "scoring": {"batches": 1, **MODES[mode].get("scoring", {})}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that was not disturbed, of a mode."""
    done: dict[str, Path] = {}

    def run(mode: str) -> Path:
        if mode not in done:
            done[mode] = tmp_path_factory.mktemp("whole") / mode
            assert train_run(config_of(mode), AdapterFolder(done[mode]))["steps"] == STEPS
        return done[mode]

    return run


def break_off(config: AdapterRun, folder: str, after: int) -> None:
    """Train up to the record of a step, which is made before its checkpoint."""

    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == after:
            raise Stop

    with pytest.raises(Stop):
        train_run(config, AdapterFolder(Path(folder)), listener=stop)


def go_on(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["adapters", "train", "--resume", *arguments])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Stopped before its first checkpoint, within an epoch, before and behind the test of an epoch, and at the end.
@pytest.mark.parametrize(
    ("mode", "after"),
    [
        *(("dynamic", after) for after in (2, 5, 7, 14)),
        pytest.param("dynamic", 8, marks=pytest.mark.processors),
        ("uniform", 8),
        ("reuse", 5),
        ("random", 11),
    ],
)
def test_a_run_that_broke_off_goes_on_bit_for_bit(mode: str, after: int, whole: Callable[[str], Path]) -> None:
    undisturbed, config = whole(mode), config_of(mode)
    break_off(config, "broken", after)
    found = go_on("broken", "--json")
    assert found.exit_code == 0, found.stderr
    one, other = load_state(undisturbed / "checkpoint"), load_state(Path("broken/checkpoint"))
    assert one is not None
    assert other is not None
    assert one["enabled"] == other["enabled"]
    assert all(torch.equal(one["adapters"][name], other["adapters"][name]) for name in one["adapters"])
    assert records(undisturbed) == records(Path("broken"))
    summary = json.loads((undisturbed / "summary.json").read_text())
    different = {name for name, value in json.loads(found.stdout).items() if summary[name] != value}
    assert different == {"wall_seconds"}
    if config.dynamic is not None:
        for name in ("history.jsonl", "frequency.toml"):
            assert (undisturbed / name).read_text() == Path("broken", name).read_text()


def test_a_run_goes_on_from_its_last_checkpoint() -> None:
    config = config_of("uniform")
    break_off(config, "run", 5)
    state = load_state(Path("run/checkpoint"))
    assert state is not None
    assert json.loads(state["trainer"]["counters"])["global_step"] == 3
    told: list[dict[str, Any]] = []
    train_run(config, AdapterFolder(Path("run")), resume=True, listener=told.append)
    assert [record["step"] for record in told if record["event"] == "step"] == list(range(4, STEPS + 1))


def test_a_run_that_broke_off_behind_its_last_step_is_completed(whole: Callable[[str], Path]) -> None:
    shutil.copytree(whole("dynamic"), "run")
    summary = json.loads(Path("run/summary.json").read_text())
    for name in ("summary.json", "history.jsonl", "frequency.toml"):
        Path("run", name).unlink()
    found = json.loads(go_on("run", "--json").stdout)
    assert {name for name in found if found[name] != summary[name]} == {"wall_seconds"}
    assert Path("run/history.jsonl").exists()


def test_the_global_random_state_is_left_alone_by_a_run_that_goes_on() -> None:
    break_off(config_of("uniform"), "run", 5)
    before = torch.get_rng_state()
    assert go_on("run").exit_code == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_complete_run_is_left_alone(whole: Callable[[str], Path]) -> None:
    shutil.copytree(whole("uniform"), "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    found = go_on("run")
    assert found.exit_code == 0
    assert "there is nothing to go on with" in found.stderr
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "--lr", "0.1"), "--resume goes on with the run exactly as it was begun"),
        (("run", "--dynamic"), "--resume goes on with the run exactly as it was begun"),
        (("run", "-o", "other"), "--resume goes on with the run exactly as it was begun"),
        (("run",), "run holds no run: it has no config.toml"),
    ],
)
def test_what_cannot_go_on_is_refused(arguments: tuple[str, ...], complaint: str) -> None:
    found = go_on(*arguments)
    assert found.exit_code == 1
    assert complaint in found.stderr
    assert not Path("run").exists()


def test_a_run_does_not_go_on_with_other_data() -> None:
    break_off(config_of("uniform"), "run", 5)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    lines = Path("a.jsonl").read_text().splitlines(keepends=True)
    Path("a.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    found = go_on("run")
    assert found.exit_code == 1
    assert "the data are not those that the run in run was begun with" in found.stderr
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
