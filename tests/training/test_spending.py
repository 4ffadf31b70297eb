"""Test that a resumed run counts what a killed one spent after its last checkpoint."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import astralora.devices.registry as registry
from astralora.devices import BudgetExceeded, DeviceTimeout, Purpose, Usage
from astralora.training import RunConfig, RunFolder, recall_run, train
from astralora.training.folder import Folder
from astralora.training.spending import add_repeated

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 400, "in_features": 16, "out_features": 8, "baseline": False}
COUNTED = ("programs", "queries", "vectors", "retries")


class Killed(BaseException):
    """End a run as a killed process does: without a checkpoint of the last steps."""


def config(**changes: Any) -> RunConfig:
    return RunConfig.load(None, {**SMALL, **changes})


def kill(folder: RunFolder, after: int, *, resume: bool = False) -> dict[str, Any]:
    """Run until the record of a step, and return this record; the epochs end after the steps 4 and 8."""
    last: dict[str, Any] = {}

    def listener(record: dict[str, Any]) -> None:
        last.update(record)
        if record["event"] == "step" and record["step"] == after:
            raise Killed

    with pytest.raises(Killed):
        train(folder, resume=resume, report=False, listener=listener)
    return last


def resume(path: Path) -> Any:
    return train(RunFolder.reopen(path), resume=True, report=False)


def spent_between(metrics: Any, first: int, last: int, what: str) -> int:
    """Return what the steps after ``first``, up to ``last``, have spent in a run that was not interrupted."""
    by_step = {record["step"]: record for record in metrics}  # the record of an epoch replaces that of its last step
    count: int = by_step[last][what] - by_step[first][what]
    return count


@pytest.mark.parametrize("changes", [{}, {"task": "digits-deep"}])
def test_steps_after_the_checkpoint_are_counted_twice(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = train(RunFolder(tmp_path / "whole", config(**changes)), report=False)
    kill(RunFolder(tmp_path / "run", config(**changes)), 6)
    resumed = resume(tmp_path / "run")
    for what in COUNTED:
        repeated = spent_between(whole.metrics, 4, 6, what)
        assert resumed.summary["repeated"][what] == repeated
        assert resumed.summary[what] == whole.summary[what] + repeated
    assert resumed.summary["repeated"]["vectors"] > 0
    assert resumed.summary["usage_by_purpose"]["repeated"]["vectors"] == resumed.summary["repeated"]["vectors"]
    assert resumed.summary["programs_per_step"] == whole.summary["programs_per_step"]
    assert resumed.metrics[-1]["vectors"] == resumed.summary["vectors"]
    assert all(torch.equal(*pair) for pair in zip(resumed.controls_after, whole.controls_after, strict=True))


def test_an_uninterrupted_run_repeats_nothing(tmp_path: Path) -> None:
    summary = train(RunFolder(tmp_path, config()), report=False).summary
    assert set(summary["repeated"].values()) == {0}
    assert "repeated" not in summary["usage_by_purpose"]


def test_every_kill_adds_to_the_counts(tmp_path: Path) -> None:
    whole = train(RunFolder(tmp_path / "whole", config()), report=False)
    kill(RunFolder(tmp_path / "run", config()), 6)
    last = kill(RunFolder.reopen(tmp_path / "run"), 7, resume=True)
    repeated = sum(spent_between(whole.metrics, 4, step, "vectors") for step in (6, 7))
    summary = resume(tmp_path / "run").summary
    assert summary["repeated"]["vectors"] == repeated
    assert summary["vectors"] == whole.summary["vectors"] + repeated
    assert last["vectors"] == summary["vectors"] - spent_between(whole.metrics, 4, 8, "vectors")


def test_a_resumed_run_that_is_killed_before_its_first_step_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(RunFolder(tmp_path / "run", config()), 6)
    # Killed before the new checkpoint, and between this checkpoint and the metrics.
    for method in ("save", "rewind"):
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, method, _kill)
            with pytest.raises(Killed):
                resume(tmp_path / "run")
    whole = train(RunFolder(tmp_path / "whole", config()), report=False)
    repeated = resume(tmp_path / "run").summary["repeated"]["vectors"]
    assert repeated == spent_between(whole.metrics, 4, 6, "vectors")


def _kill(*_: object) -> None:
    raise Killed


def test_a_budget_counts_repeated_steps(tmp_path: Path) -> None:
    whole = train(RunFolder(tmp_path / "whole", config()), report=False)
    limit = whole.summary["vectors"]
    kill(RunFolder(tmp_path / "run", config(budget={"vectors": limit})), 6)
    summary = resume(tmp_path / "run").summary
    assert f"of a budget of {limit}" in summary["stopped_early"]
    assert summary["vectors"] <= limit
    recalled = recall_run(RunFolder.reopen(tmp_path / "run"))
    assert recalled.summary == summary


def test_each_of_several_devices_is_counted_on_its_own(tmp_path: Path) -> None:
    kill(RunFolder(tmp_path, config(task="digits-deep")), 6)
    state = RunFolder.reopen(tmp_path).load()
    assert state is not None
    last = Folder(tmp_path).metrics().records[-1]
    assert last["devices"].keys() == state["sessions"].keys()
    assert len(last["devices"]) > 1
    for what in COUNTED:
        assert sum(each[what] for each in last["devices"].values()) == last[what]
    raised = add_repeated(state["sessions"], [last])
    for name, counts in last["devices"].items():
        usage = sum((Usage(**each) for each in raised[name]["usage"].values()), Usage())
        assert {what: getattr(usage, what) for what in COUNTED} == counts


def test_lower_counts_in_the_metrics_change_nothing(tmp_path: Path) -> None:
    kill(RunFolder(tmp_path, config()), 6)
    state = RunFolder.reopen(tmp_path).load()
    assert state is not None
    (name,) = state["sessions"]
    for records in ([], [{"event": "baseline"}], [{"programs": 1, "vectors": 0}]):
        assert add_repeated(state["sessions"], records) == {name: state["sessions"][name]}


def test_a_chip_that_fails_in_a_step_is_counted_with_its_retries(
    tmp_path: Path, matrix_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Chip(matrix_device):
        answers = 10**9

        def _query(self, inputs: Any) -> Any:
            type(self).answers -= 1
            if type(self).answers < 0:
                raise DeviceTimeout("no answer", device="chip", operation="query")
            return super()._query(inputs)

    chips: list[Chip] = []

    def factory(in_features: int, out_features: int) -> Chip:
        chips.append(Chip(in_features, out_features))
        return chips[-1]

    monkeypatch.setattr(registry, "_registered", {"chip": factory})
    run = RunFolder(tmp_path, config(device={"name": "chip"}, retry={"attempts": 2, "wait_seconds": 0}))

    def listener(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == 5:
            Chip.answers = 0

    with pytest.raises(DeviceTimeout):
        train(run, report=False, listener=listener)
    Chip.answers = 10**9
    broken = Folder(tmp_path).metrics().records[-1]
    assert broken["event"] == "stopped"
    sent = sum(int(entry.split()[1]) for entry in chips[0].log if entry.startswith("query"))
    assert broken["vectors"] > sent, "vectors without an answer are counted too"
    assert broken["retries"] > 0
    summary = resume(tmp_path).summary
    assert summary["device_state"] == "reopened"
    assert summary["retries"] >= broken["retries"]
    assert summary["repeated"]["vectors"] > 0
    assert summary["programs"] >= sum(chip.log.count("program") for chip in chips)


def test_the_report_and_the_command_say_what_was_spent_twice(tmp_path: Path) -> None:
    from astralora.reports import verdicts

    kill(RunFolder(tmp_path, config()), 6)
    resumed = resume(tmp_path)
    (sentence,) = [sentence for sentence in verdicts(resumed) if "killed" in sentence]
    assert f"{resumed.summary['repeated']['vectors']:,} vectors were spent in steps that had to be repeated" in sentence
    assert json.loads((tmp_path / "summary.json").read_text())["repeated"] == resumed.summary["repeated"]
    assert Purpose.REPEATED in resumed.summary["usage_by_purpose"]


def test_all_parts_of_a_run_on_a_chip_together_stay_within_the_budget(
    tmp_path: Path, matrix_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips: list[Any] = []

    def factory(in_features: int, out_features: int) -> Any:
        chips.append(matrix_device(in_features, out_features, control_range=(-10.0, 10.0), input_range=None))
        return chips[-1]

    monkeypatch.setattr(registry, "_registered", {"chip": factory})
    limit = 250
    run = RunFolder(tmp_path, config(device={"name": "chip"}, method={"name": "paper"}, budget={"programs": limit}))
    kill(run, 1)  # a step takes 100 programs
    for _ in range(3):
        with suppress(BudgetExceeded):
            resume(tmp_path)
            break
    assert sum(chip.log.count("program") for chip in chips) <= limit
