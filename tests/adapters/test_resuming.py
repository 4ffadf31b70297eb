"""Test the continuation of interrupted runs."""

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
from astralora.adapters.run_config import AdapterRun
from astralora.cli.app import app
from astralora.training.checkpoint import load_state

STEPS = 14
"""Steps of two epochs, each with 50 texts in batches of eight."""

MODES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "dynamic": {"dynamic": {"realloc_n": 0.3}},
    "reuse": {"dynamic": {"realloc_n": 0.3, "reuse": True}},
    "random": {"dynamic": {"realloc_n": 0.3}, "scoring": {"proxy": "constant"}},
}


class Stop(Exception):
    """Interrupt a run."""


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write labelled texts into an empty working directory."""
    monkeypatch.chdir(tmp_path)
    text = "".join(topics.values())
    rows = [{"text": text[32 * n :][:31], "label": str(text[32 * n].isalpha())} for n in range(62)]
    for name, part in (("a.jsonl", rows[:50]), ("test.jsonl", rows[50:])):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def config_of(mode: str) -> AdapterRun:
    """Configure a run with dropout in model and adapters, so that the global generators matter."""
    common = {
        "model": {"options": {"dropout": 0.1}},
        "data": {"train": "a.jsonl", "test": "test.jsonl", "label": "label", "length": 32},
        "adapters": {"default": {"r": 2, "lora_dropout": 0.1}},
        "training": {"epochs": 2, "checkpoint_steps": 3},
        "scoring": {"batches": 1},
    }
    return AdapterRun.load(None, {**common, **MODES[mode], "scoring": {"batches": 1, **MODES[mode].get("scoring", {})}})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains an uninterrupted run of a mode once, and returns its folder."""
    done: dict[str, Path] = {}

    def run(mode: str) -> Path:
        if mode not in done:
            done[mode] = tmp_path_factory.mktemp("uninterrupted") / mode
            assert train_run(config_of(mode), AdapterFolder(done[mode]))["steps"] == STEPS
        return done[mode]

    return run


def interrupt(config: AdapterRun, folder: str, after: int) -> None:
    """Train until the record of a step, which comes before the checkpoint of this step."""

    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == after:
            raise Stop

    with pytest.raises(Stop):
        train_run(config, AdapterFolder(Path(folder)), listener=stop)


def resume(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["adapters", "train", "--resume", *arguments])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Interrupted before the first checkpoint, within an epoch, before and after the test of an epoch, and at the end.
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
def test_an_interrupted_run_continues_bit_for_bit(mode: str, after: int, uninterrupted: Callable[[str], Path]) -> None:
    reference, config = uninterrupted(mode), config_of(mode)
    interrupt(config, "broken", after)
    found = resume("broken", "--json")
    assert found.exit_code == 0, found.stderr
    one, other = load_state(reference / "checkpoint"), load_state(Path("broken/checkpoint"))
    assert one is not None
    assert other is not None
    assert one["enabled"] == other["enabled"]
    assert all(torch.equal(one["adapters"][name], other["adapters"][name]) for name in one["adapters"])
    assert records(reference) == records(Path("broken"))
    summary = json.loads((reference / "summary.json").read_text())
    different = {name for name, value in json.loads(found.stdout).items() if summary[name] != value}
    assert different == {"wall_seconds"}
    if config.dynamic is not None:
        for name in ("history.jsonl", "frequency.toml"):
            assert (reference / name).read_text() == Path("broken", name).read_text()


def test_a_run_continues_from_its_last_checkpoint() -> None:
    config = config_of("uniform")
    interrupt(config, "run", 5)
    state = load_state(Path("run/checkpoint"))
    assert state is not None
    assert json.loads(state["trainer"]["counters"])["global_step"] == 3
    new_records: list[dict[str, Any]] = []
    train_run(config, AdapterFolder(Path("run")), resume=True, listener=new_records.append)
    assert [record["step"] for record in new_records if record["event"] == "step"] == list(range(4, STEPS + 1))


def test_a_run_interrupted_after_its_last_step_is_completed(uninterrupted: Callable[[str], Path]) -> None:
    shutil.copytree(uninterrupted("dynamic"), "run")
    summary = json.loads(Path("run/summary.json").read_text())
    for name in ("summary.json", "history.jsonl", "frequency.toml"):
        Path("run", name).unlink()
    found = json.loads(resume("run", "--json").stdout)
    assert {name for name in found if found[name] != summary[name]} == {"wall_seconds"}
    assert Path("run/history.jsonl").exists()


def test_a_continued_run_does_not_change_the_global_random_state() -> None:
    interrupt(config_of("uniform"), "run", 5)
    before = torch.get_rng_state()
    assert resume("run").exit_code == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_complete_run_is_not_changed(uninterrupted: Callable[[str], Path]) -> None:
    shutil.copytree(uninterrupted("uniform"), "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    found = resume("run")
    assert found.exit_code == 0
    assert "there is nothing to resume" in found.stderr
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "--lr", "0.1"), "--resume continues a run unchanged"),
        (("run", "--dynamic"), "--resume continues a run unchanged"),
        (("run", "-o", "other"), "--resume continues a run unchanged"),
        (("run",), "run holds no run: it has no config.toml"),
    ],
)
def test_runs_that_cannot_continue_are_refused(arguments: tuple[str, ...], complaint: str) -> None:
    found = resume(*arguments)
    assert found.exit_code == 1
    assert complaint in found.stderr
    assert not Path("run").exists()


def test_a_run_does_not_continue_with_other_data() -> None:
    interrupt(config_of("uniform"), "run", 5)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    lines = Path("a.jsonl").read_text().splitlines(keepends=True)
    Path("a.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    found = resume("run")
    assert found.exit_code == 1
    assert "the data have changed since the run in run began" in found.stderr
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
