"""Test ``--device FILE.py:FACTORY`` on the command line."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

CHIP = """
from astralora.devices import make_device

def make_chip(in_features=16, out_features=8, seed=0, impairments="ideal"):
    return make_device("slm", in_features=in_features, out_features=out_features, seed=seed, impairments=impairments)
"""
SMALL = ("--in-features", 16, "--out-features", 8)
SHORT = (*SMALL, "--epochs", 1, "--batch-size", 400, "--no-baseline", "--json")


@pytest.fixture(autouse=True)
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a chip's file, and restore the search path afterwards."""
    (tmp_path / "mychip.py").write_text(CHIP)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_run_on_a_file_can_be_repeated_from_another_folder(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command("train", "--device", "mychip.py:make_chip", *SHORT, "-o", "run")
    assert first.exit_code == 0, first.stderr
    config = tmp_path / "run" / "config.toml"
    assert tomllib.loads(config.read_text())["device"]["name"] == f"{tmp_path / 'mychip.py'}:make_chip"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = command("train", "--config", config, "--json", "-o", "again")
    results = [json.loads(run.stdout) for run in (first, again)]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def test_a_new_run_folder_has_the_name_of_the_file(command: Any, tmp_path: Path) -> None:
    assert command("train", "--device", "mychip.py:make_chip", *SHORT).exit_code == 0
    assert next((tmp_path / "runs").iterdir()).name.startswith("digits-mychip-auto-seed0-")


def test_a_file_is_checked_and_planned(command: Any, tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text('device = "mychip.py:make_chip"\n')
    for name in ("mychip.py:make_chip", "bench.toml"):
        run = command("check", "--device", name, "--only", "spec", *SMALL, "--set", "device.options.seed=3", "--json")
        assert run.exit_code == 0, run.stderr
        assert command("plan", "--device", name, *SMALL, "--epochs", 1).exit_code == 0
    run = command("bench", "session", "--device", "mychip.py:make_chip", "--size", 4, "--rounds", 10, "--json")
    assert run.exit_code == 0, run.stderr


@pytest.mark.parametrize("arguments", [("train",), ("plan",), ("check",), ("calibrate",), ("emulate",),
                                       ("bench", "session"), ("bench", "simulators")])  # fmt: skip
def test_a_mistake_is_reported_in_one_sentence(arguments: tuple[str, ...], command: Any) -> None:
    run = command(*arguments, "--device", "mychip.py:make")
    assert run.exit_code == 1
    assert "mychip.py has no 'make'" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
