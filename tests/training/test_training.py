"""Test small complete runs: files on disk, operations spent, and resuming."""

import json
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import astralora.devices.registry as registry
from astralora import ConfigurationError
from astralora.devices import BudgetExceeded, DeviceError
from astralora.tasks import TASKS
from astralora.training import Interrupted, RunConfig, RunFolder, plan, train

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 400, "in_features": 16, "out_features": 8}


def config(**changes: Any) -> RunConfig:
    return RunConfig.load(None, {**SMALL, **changes})


def run(path: Path, **changes: Any) -> Any:
    return train(RunFolder(path, config(**changes)), report=False)


@pytest.fixture
def chips(matrix_device: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return all drivers that are made for a device registered as "chip"."""
    made: list[Any] = []

    def factory(in_features: int, out_features: int) -> Any:
        made.append(matrix_device(in_features, out_features))
        return made[-1]

    monkeypatch.setattr(registry, "_registered", {"chip": factory})
    return made


def without_times(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "wall_seconds"} for record in metrics]


def without_counts(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = {"programs", "queries", "vectors", "retries", "hardware_seconds", "devices"}
    return [{k: v for k, v in record.items() if k not in counts} for record in without_times(metrics)]


METHODS: list[dict[str, Any]] = [
    {},
    {"device": {"name": "slm", "impairments": "harsh"}},
    {"device": {"name": "matvec", "impairments": "ideal"}, "method": {"name": "paper", "options": {"samples": 3}}},
    {"device": {"name": "mzi"}, "method": {"name": "paper", "options": {"samples": 2, "rank": 3, "probes": 5}}},
    {"device": {"name": "mzi"}, "method": {"options": {"samples": 2}}},
    {"method": {"estimator": "output", "surrogate": "online", "options": {"samples": 2}}},
    {"method": {"name": "exact"}},
    {
        "task": "digits-deep",
        "batch_size": 300,
        "method": {"estimator": "orthogonal", "surrogate": "online", "options": {"samples": 4}},
        "allocate": {"ranking": "neyman", "period": 2},
    },
    {"batch_size": 100, "method": {"name": "paper", "options": {"samples": 2, "rebuild_every": 3}}},
    {"device": {"options": {"input_range": [0.0, 1.0], "max_batch": 64}}},
    {"batch_size": 2000},
    {"task": "digits-deep", "batch_size": 100},
    {"task": "digits-conv", "in_features": 32},
    {"device": {"name": "tiled", "options": {"chip": "slm", "tile": 4}}},
    {"device": {"name": "tiled", "options": {"chip": "slm", "tile": 4, "chips": 1}}},
    {"device": {"name": "monarch"}},
    {"device": {"name": "mzi"}, "method": {"surrogate": "adjoint", "options": {"samples": 2}}},
    {"method": {"surrogate": "online_low_rank", "options": {"rank": 3}}},
    {"method": {"options": {"digital_fraction": 0.1, "initialize": "fit"}}},
]


@pytest.mark.parametrize("changes", METHODS[:-1])  # the cost of a fit depends on the answers
def test_a_plan_is_within_5_percent_of_the_training(changes: dict[str, Any], tmp_path: Path) -> None:
    if "method" not in changes and changes.get("device", {}).get("name") != "monarch":
        # A plan cannot include early measurements, which depend on the answers.
        changes = {**changes, "method": {"options": {"stale": 1e9}}}
    planned = plan(config(**changes))
    used = run(tmp_path, **changes).summary
    for what in ("programs", "vectors"):
        assert getattr(planned.total, what) == pytest.approx(used[what], rel=0.05), what
    assert planned.hardware_seconds == pytest.approx(used["hardware_seconds"], rel=0.05)
    assert planned.steps == used["steps"]
    assert planned.by_purpose.keys() == used["usage_by_purpose"].keys()


def test_a_plan_does_not_open_the_device(chips: list[Any]) -> None:
    assert plan(config(device={"name": "chip"})).total.programs > 0
    assert [device.log for device in chips] == [[]]


def test_a_driver_trains_like_a_simulator(chips: list[Any], tmp_path: Path) -> None:
    result = run(tmp_path, device={"name": "chip"})
    assert result.summary["device_state"] == "continuous"
    assert result.summary["serial_number"] == "unknown"
    assert chips[0].log[0] == "open"
    assert chips[0].log[-1] == "close"


def test_a_driver_gets_no_impairments_by_default(chips: list[Any], tmp_path: Path) -> None:
    run(tmp_path / "one", device={"name": "chip"})
    again = RunConfig.load(tmp_path / "one" / "config.toml")
    train(RunFolder(tmp_path / "two", again), report=False)
    with pytest.raises(DeviceError, match="impairments"):
        run(tmp_path / "three", device={"name": "chip", "impairments": "harsh"})


@pytest.mark.parametrize("changes", METHODS[:4])
def test_the_same_seed_gives_the_same_metrics(changes: dict[str, Any], tmp_path: Path) -> None:
    first, second = (run(tmp_path / name, **changes) for name in "ab")
    assert without_times(first.metrics) == without_times(second.metrics)
    assert all(torch.equal(*pair) for pair in zip(first.controls_after, second.controls_after, strict=True))
    other = run(tmp_path / "c", **changes, seed=1)
    assert without_times(other.metrics) != without_times(first.metrics)


@pytest.mark.parametrize("changes", METHODS[:9])
@pytest.mark.parametrize("stop_after", [1, pytest.param(4, marks=pytest.mark.processors), 5])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    changes: dict[str, Any], stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", **changes)

    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    folder = RunFolder(tmp_path / "parts", config(**changes))
    with pytest.raises(Interrupted) as interruption:
        train(folder, listener=stop)
    assert interruption.value.step == stop_after
    assert folder.summary() is None
    resumed = train(RunFolder.reopen(tmp_path / "parts"), resume=True, report=False)
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    assert all(torch.equal(*pair) for pair in zip(resumed.controls_after, whole.controls_after, strict=True))
    assert all(torch.equal(*pair) for pair in zip(resumed.controls_before, whole.controls_before, strict=True))
    states = [RunFolder.reopen(tmp_path / name).load() for name in ("whole", "parts")]
    first, second = (state["fit"]["model"] for state in states if state is not None)
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
    assert resumed.summary["device_state"] == "continuous"


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == 6:
            raise Killed

    folder = RunFolder(tmp_path / "parts", config())
    with pytest.raises(Killed):
        train(folder, listener=kill)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')  # an incomplete line
    resumed = train(RunFolder.reopen(tmp_path / "parts"), resume=True, report=False)
    assert without_counts(resumed.metrics) == without_counts(whole.metrics)
    assert torch.equal(resumed.controls_after[0], whole.controls_after[0])


def test_a_device_without_a_restored_state_is_reported_as_reopened(chips: list[Any], tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(RunFolder(tmp_path, config(device={"name": "chip"})), listener=stop)
    assert train(RunFolder.reopen(tmp_path), resume=True, report=False).summary["device_state"] == "reopened"


def test_the_run_folder_holds_all_specified_files(tmp_path: Path) -> None:
    result = run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.pop("check").startswith("sha256:")
    assert summary == result.summary
    needed = """task device method seed epochs steps test_accuracy best_test_accuracy programs queries vectors retries
        hardware_seconds wall_seconds device_state"""
    assert set(needed.split()) <= summary.keys()
    assert (summary["epochs"], summary["steps"], summary["programs"]) == (2, 8, 10)
    assert RunConfig.load(tmp_path / "config.toml") == config()
    events = [record["event"] for record in result.metrics]
    assert events == ["baseline"] * 2 + (["step"] * 4 + ["epoch"]) * 2
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".json", ".safetensors"}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_hardware_seconds_are_usage_at_the_spec_rates(tmp_path: Path) -> None:
    summary = run(tmp_path).summary
    assert summary["hardware_seconds"] == pytest.approx(0.01 * summary["programs"] + 1e-6 * summary["vectors"])
    parts = summary["usage_by_purpose"].values()
    assert sum(part["vectors"] for part in parts) == summary["vectors"]


def test_a_spent_budget_ends_the_run_early_with_a_result(tmp_path: Path) -> None:
    summary = run(tmp_path, budget={"programs": 7}).summary
    assert summary["programs"] <= 7
    assert summary["epochs"] == 1
    assert "of a budget of 7" in summary["stopped_early"]
    assert summary["test_accuracy"] is not None


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"budget": {"programs": 1}}, BudgetExceeded, "startup and first step alone take 2 programs"),
        ({"budget": {"vectors": 400}}, BudgetExceeded, "vectors of a budget of 400"),
        ({"device": {"name": "mmr"}}, DeviceError, "did you mean 'mrr'"),
        ({"device": {"options": {"seed": 3}}}, DeviceError, "'seed' has a key of its own"),
        ({"method": {"name": "magic"}}, ConfigurationError, "no method named 'magic'"),
        ({"method": {"options": {"samples": 3}}}, ConfigurationError, "takes an option 'samples'"),
        ({"method": {"options": {"step": "big"}}}, ConfigurationError, "a number of control units, or 'auto'"),
        ({"method": {"name": "paper", "options": {"rank": 2.5}}}, ConfigurationError, "rank must be a whole number"),
        ({"task": "dogits"}, ConfigurationError, "no task named 'dogits'; known are digits, digits-deep, digits-conv"),
        ({"in_features": 20}, ConfigurationError, "multiple of 16, and 20 is not"),
    ],
)
def test_an_impossible_run_is_refused_before_anything_is_spent_or_written(
    changes: dict[str, Any], error: Any, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=complaint):
        run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_exact_is_refused_for_a_device_without_a_law(chips: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs a device with a differentiable law"):
        run(tmp_path / "run", device={"name": "chip"}, method={"name": "exact"})
    assert not (tmp_path / "run").exists()


def test_a_run_without_checkpoint_does_not_overwrite_its_metrics(tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(RunFolder(tmp_path, config()), listener=stop)
    shutil.rmtree(tmp_path / "checkpoint")
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ConfigurationError, match="has no checkpoint to resume from"):
        train(RunFolder.reopen(tmp_path), resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_report_gets_one_when_resumed(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "summary.json").unlink()
    train(RunFolder.reopen(tmp_path), resume=True)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "summary.json").is_file()


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="is not an empty folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_digits_are_complete_and_always_split_in_the_same_way() -> None:
    splits = TASKS.make("digits").splits()
    assert (len(splits.train_inputs), len(splits.test_inputs)) == (1437, 360)
    assert splits.train_inputs.shape[1:] == (1, 8, 8)
    assert (float(splits.train_inputs.min()), float(splits.train_inputs.max())) == (0.0, 1.0)
    assert splits.test_targets.bincount().min() >= 35, "every digit in proportion"
    assert torch.equal(TASKS.make("digits").splits().test_inputs, splits.test_inputs)


def test_a_plan_refuses_an_impossible_configuration() -> None:
    with pytest.raises(ConfigurationError, match="'mrr' has no reverse port"):
        plan(config(method={"surrogate": "adjoint"}))


@pytest.mark.parametrize("method", [{}, {"surrogate": "adjoint"}])
def test_a_plan_accounts_for_full_rank_gradients(method: dict[str, Any], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "device": {"name": "mzi"}, "in_features": 32, "out_features": 32, "batch_size": 100,
        "method": {**method, "options": {"samples": 3}},
    }  # fmt: skip
    planned, used = plan(config(**changes)).total, run(tmp_path, **changes).summary
    assert planned.programs == used["programs"]
    assert planned.vectors == pytest.approx(used["vectors"], rel=0.05)


@pytest.mark.parametrize("task", [pytest.param("digits-deep", marks=pytest.mark.campaign), "digits-conv"])
def test_models_with_other_device_layers_come_within_two_points_of_digital_ones(task: str, tmp_path: Path) -> None:
    summary = train(RunFolder(tmp_path, RunConfig(task=task, seed=1)), report=False).summary
    assert summary["baseline_test_accuracy"] > 0.97
    assert summary["test_accuracy"] > summary["baseline_test_accuracy"] - 0.02
