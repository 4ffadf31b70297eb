"""Flip bits of the files of runs, and cut the files: a run is resumed exactly, or refused in one sentence."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.adapters.folder import AdapterFolder
from astralora.adapters.run import train_run
from astralora.adapters.run_config import AdapterRun
from astralora.training import RunConfig, RunFolder, recall_run, train
from astralora.training.checkpoint import load_state
from astralora.training.folder import Folder

SHORT, LONG = 20, 300
"""Flips for each file, in the normal run and in the campaign."""

# A line after the checkpoint holds what its step spent. The summary of a run that has lost this line differs by that.
COUNTS = {"programs", "queries", "vectors", "retries", "hardware_seconds", "usage_by_purpose", "repeated"}


class Killed(BaseException):
    """End a run as a killed process does: without a checkpoint of the last steps."""


def kill_after(step: int) -> Callable[[Mapping[str, Any]], None]:
    def listener(record: Mapping[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == step:
            raise Killed

    return listener


@dataclass(frozen=True)
class Kind:
    """Describe how runs of a kind are started and used again.

    Attributes:
        start: starts the run in a folder, and kills it where a listener is given.
        resume: resumes the run in a folder, and returns its summary.
        reuse: returns the summary of the finished run in a folder.
    """

    start: Callable[[Path, Any], None]
    resume: Callable[[Path], Mapping[str, Any]]
    reuse: Callable[[Path], Mapping[str, Any] | None]


def start_training(path: Path, listener: Any) -> None:
    changes = {"epochs": 2, "batch_size": 500, "in_features": 16, "out_features": 4, "baseline": False}
    train(RunFolder(path, RunConfig.load(None, changes)), report=False, listener=listener)


def start_adapters(path: Path, listener: Any) -> None:
    rows = [{"text": f"{number:032b}"} for number in range(20)]
    data = path.parent / "corpus.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "data": {"train": str(data), "length": 16},
        "adapters": {"default": {"r": 1}},
        "training": {"epochs": 2, "checkpoint_steps": 2},
    }
    train_run(AdapterRun.load(None, tables), AdapterFolder(path), listener=listener)


def resume_adapters(path: Path) -> Mapping[str, Any]:
    folder = AdapterFolder(path)
    return train_run(folder.config(), folder, resume=True)


KINDS = {
    "training": Kind(
        start_training,
        lambda path: train(RunFolder.reopen(path), resume=True, report=False).summary,
        lambda path: recall_run(RunFolder.reopen(path)).summary,
    ),
    "adapters": Kind(start_adapters, resume_adapters, lambda path: AdapterFolder(path).finished()),
}


def state_of(path: Path) -> Mapping[str, Any]:
    state = load_state(path / "checkpoint")
    assert state is not None
    fit: Mapping[str, Any] = state.get("fit", state)
    return fit


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a if not str(key).endswith("seconds"))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def without(summary: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in {"wall_seconds", *names}}


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the undamaged lines of metrics.jsonl without what depends on time or on the damage of other lines."""
    return [without(record, *COUNTS, "devices") for record in Folder(path).metrics().records]


def damage(file: Path, rng: random.Random) -> None:
    """Flip one bit of a file, or cut it at any place, once in ten times."""
    content = bytearray(file.read_bytes())
    if rng.random() < 0.1:
        content = content[: rng.randrange(len(content))]
    else:
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def outcome(
    use: Callable[[Path], Mapping[str, Any] | None], path: Path, reference: Path, expected: Mapping[str, Any]
) -> str:
    """Use a damaged run, and return what came of it: "refused", "exact", or "reported" where lines were left out."""
    summary, refusal = None, ""
    try:
        summary = use(path)
    except ConfigurationError as error:
        refusal = str(error)
    if refusal:
        assert len(refusal.splitlines()) == 1, refusal
        return "refused"
    assert summary is not None
    assert equal(state_of(path), state_of(reference))
    state = load_state(path / "checkpoint")
    assert state is not None
    damaged = Folder(path).metrics(state["lines"]).damaged_lines
    complete = damaged == 0
    whole, found = lines(reference), lines(path)
    assert found == whole if complete else len(found) == len(whole) - damaged
    assert all(line in whole for line in found)
    counted = {} if complete and summary.get("repeated") == expected.get("repeated") else COUNTS
    assert without(summary, "damaged_lines", *counted) == without(expected, "damaged_lines", *counted)
    return "exact" if complete else "reported"


def flip(kind: str, file: str, finished: bool, tmp_path: Path, flips: int) -> Counter[str]:
    """Damage one file of a run many times, and count the outcomes."""
    run = KINDS[kind]
    original, reference = tmp_path / "run", tmp_path / "reference"
    if finished:
        run.start(original, None)
        shutil.copytree(original, reference)
        use: Callable[[Path], Mapping[str, Any] | None] = run.reuse
        expected = run.reuse(reference)
    else:
        with pytest.raises(Killed):
            run.start(original, kill_after(5))
        shutil.copytree(original, reference)
        use, expected = run.resume, run.resume(reference)
    assert expected is not None
    rng = random.Random(f"{kind} {file} {finished}")
    outcomes: Counter[str] = Counter()
    for _ in range(flips):
        shutil.copytree(original, tmp_path / "damaged")
        damage(next((tmp_path / "damaged").glob(file)), rng)
        outcomes[outcome(use, tmp_path / "damaged", reference, expected)] += 1
        shutil.rmtree(tmp_path / "damaged")
    return outcomes


FILES = {
    "config": "config.toml",
    "metrics": "metrics.jsonl",
    "state": "checkpoint/state.json",
    "tensors": "checkpoint/tensors-*",
    "summary": "summary.json",
}
CASES = [
    pytest.param(kind, file, finished, id=f"{kind}-{'finished' if finished else 'killed'}-{name}")
    for kind in KINDS
    for finished in (False, True)
    for name, file in FILES.items()
    if finished or name != "summary"
]


@pytest.mark.parametrize(("kind", "file", "finished"), CASES)
def test_a_damaged_run_is_resumed_exactly_or_refused(kind: str, file: str, finished: bool, tmp_path: Path) -> None:
    flips = SHORT if finished or "metrics" not in file else SHORT // 4
    assert flip(kind, file, finished, tmp_path, flips).total() == flips


@pytest.mark.campaign
@pytest.mark.parametrize(("kind", "file", "finished"), CASES)
def test_many_damaged_runs_are_resumed_exactly_or_refused(
    kind: str, file: str, finished: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outcomes = flip(kind, file, finished, tmp_path, LONG)
    print(kind, "finished" if finished else "killed", file, dict(outcomes))
    record_property("outcomes", dict(outcomes))
    if file.startswith(("checkpoint", "summary")):
        assert outcomes["refused"] == LONG, "every bit of these files is under a hash"
