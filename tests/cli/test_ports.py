"""Test emulation, checks and training over real ports, with the commands as a user types them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from astralora.cli.app import app
from astralora.training.checkpoint import load_state

from ..children import start

COMMAND = [sys.executable, "-m", "astralora"]


def run(folder: Path, *arguments: str) -> Any:
    """Run the host's command in this process: the emulator is another one."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, arguments)


@contextlib.contextmanager
def emulate(folder: Path, *arguments: str) -> Generator[dict[str, Any]]:
    """Run the command in a process of its own, from its first line to Ctrl-C."""
    process = start(
        [*COMMAND, "emulate", *arguments, "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        place: dict[str, Any] = json.loads(line)
        yield place
        process.send_signal(signal.SIGINT)
        place["said"] = process.communicate(timeout=30)[1]
        place["code"] = process.returncode
    finally:
        process.kill()
        process.communicate()


def weights(run_folder: Path) -> dict[str, Any]:
    state = load_state(run_folder / "checkpoint")
    assert state is not None
    return {name: value for name, value in state["fit"]["model"].items() if isinstance(value, torch.Tensor)}


def test_training_over_a_pseudo_terminal_ends_with_the_weights_of_training_in_process(tmp_path: Path) -> None:
    training = ["--epochs", "1", "--batch-size", "400", "--no-baseline", "--json"]
    with emulate(tmp_path, "--device", "mrr", "--pty", "--impairments", "ideal", "--out", "bench.toml") as place:
        done = run(tmp_path, "train", "--device", "bench.toml", *training, "-o", "port")
        assert done.exit_code == 0, done.stderr
    assert place["code"] == 0
    over_port = json.loads(done.stdout)
    done = run(tmp_path, "train", "--device", "mrr", "--impairments", "ideal", *training, "-o", "process")
    in_process = json.loads(done.stdout)
    for what in ("test_accuracy", "programs", "vectors", "serial_number"):
        assert over_port[what] == in_process[what]
    ours, theirs = weights(tmp_path / "port"), weights(tmp_path / "process")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert 'name = "frame-mvm"' in (tmp_path / "port" / "config.toml").read_text(), (
        "a run can be repeated without the bench"
    )


def test_check_passes_over_tcp_and_prints_json(tmp_path: Path) -> None:
    with emulate(
        tmp_path, "--device", "slm", "--tcp", "127.0.0.1:0", "--in-features", "8", "--out-features", "6"
    ) as place:
        done = run(
            tmp_path,
            "check",
            "--device",
            place["device"],
            "--set",
            f"device.options.port={place['options']['port']}",
            "--json",
            "--budget-programs",
            "60",
            "--budget-vectors",
            "3000",
            "--drift-seconds",
            "0.05",
        )
    assert done.exit_code == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)
    assert {tuple(result) for result in results["checks"]} == {("check", "passed", "detail")}
    assert all(result["passed"] for result in results["checks"])
    spent = results["characterisation"]["spent"]
    assert 40 < spent["programs"] <= 60
    assert 1500 < spent["vectors"] <= 3000


def test_measures_a_chip_behind_scpi_within_its_budget(tmp_path: Path) -> None:
    with emulate(
        tmp_path,
        "--device",
        "matvec",
        "--scpi",
        "127.0.0.1:0",
        "--in-features",
        "4",
        "--out-features",
        "4",
        "--impairments",
        "lab",
    ) as place:
        done = run(
            tmp_path,
            "check",
            "--device",
            place["device"],
            "--set",
            f"device.options.port={place['options']['port']}",
            "--json",
            "--only",
            "noise",
            "--only",
            "survey",
            "--only",
            "converters",
            "--budget-programs",
            "20",
            "--budget-vectors",
            "1500",
        )
    assert done.exit_code == 0, done.stdout + done.stderr
    measured = json.loads(done.stdout)["characterisation"]
    assert measured["spent"]["programs"] <= 20
    assert measured["spent"]["vectors"] <= 1500
    found = {finding["name"]: finding for finding in measured["findings"]}
    assert found["noise_std"]["agrees"]
    assert found["output_levels"]["value"] == 255


def test_injected_faults_are_counted_at_the_end(tmp_path: Path) -> None:
    with emulate(
        tmp_path, "--device", "matvec", "--pty", "--faults", "corrupt=0.5,seed=1", "--out", "bench.toml"
    ) as place:
        import astralora.devices as d

        with d.open_device(str(tmp_path / "bench.toml"), retry=d.Retry(attempts=20, wait_seconds=0)) as session:
            for number in range(10):
                session.program(torch.full((session.spec.num_controls,), number / 10))
            retries = session.usage.retries
    assert retries > 0
    assert place["said"].endswith(f"injected faults: {retries} corrupt\n")


def test_the_link_to_the_port_is_removed_at_the_end(tmp_path: Path) -> None:
    with emulate(tmp_path, "--device", "matvec", "--link", "chip") as place:
        assert place["options"]["port"] == f"serial://{tmp_path / 'chip'}"
        assert os.path.islink(tmp_path / "chip")
    assert not os.path.lexists(tmp_path / "chip")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["emulate", "--device", "nope"], "there is no device named 'nope'"),
        (
            ["emulate", "--device", "mrr", "--tcp", "0.0.0.0:0"],
            "could operate the device without a password; listen on 127.0.0.1",
        ),
        (["emulate", "--device", "mrr", "--tcp", "5000"], "write HOST:PORT"),
        (["emulate", "--device", "mrr", "--tcp", ":0"], "write HOST:PORT"),
        (["emulate", "--device", "mrr", "--tcp", ""], "--tcp needs an address; write HOST:PORT"),
        (["emulate", "--device", "mrr", "--scpi", ""], "--scpi needs an address; write HOST:PORT"),
        (["emulate", "--device", "mrr", "--link", ""], "--link needs the path of a file to create"),
        (
            ["emulate", "--device", "mrr", "--pty", "--scpi", "127.0.0.1:0"],
            "--pty and --scpi are different ports; choose one",
        ),
        (
            ["emulate", "--device", "mrr", "--faults", "colour=1"],
            "colour: there is no such key; known are timeout,",
        ),
        (["emulate", "--device", "mrr", "--faults", "often"], "'often' is not a fault plan"),
        (
            ["emulate", "--device", "mrr", "--scpi", "127.0.0.1:0", "--faults", "corrupt=0.1"],
            "SCPI cannot detect a corrupt answer",
        ),
        (
            ["emulate", "--device", "mrr", "--link", "/nowhere/chip"],
            "no pseudo-terminal can be opened at /nowhere/chip",
        ),
        (["check", "--device", "nope.toml"], "the bench file nope.toml cannot be read: No such file or directory"),
        (["check", "--device", "mrr", "--only", "colour"], "there is no check 'colour'; known are spec,"),
        (
            ["check", "--device", "frame-mvm", "--set", "device.options.port=serial:///dev/nothing"],
            "does not exist; check the cable and the name",
        ),
        (
            ["check", "--device", "frame-mvm", "--set", "device.options.port=com3"],
            "'com3' is not the address of a port; write, for example,",
        ),
        (["train", "--device", "nope.toml"], "the bench file nope.toml cannot be read"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(arguments: list[str], complaint: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "complaint"), [("5", ""), ("0", "watchdog must be a time from 0.1 to 4294967 seconds")]
)
def test_a_watchdog_is_set_on_the_command_line(seconds: str, complaint: str) -> None:
    import astralora.devices as d

    chip = d.make_device("matvec", in_features=4, out_features=3)
    emulator = d.make_emulator("frames", chip, "tcp://127.0.0.1:0").start()
    port, watchdog = f"device.options.port={emulator.uri}", f"device.options.watchdog={seconds}"
    result = invoke("check", "--device", "frame-mvm", "--set", port, "--set", watchdog, "--only", "spec")
    emulator.stop()
    assert result.exit_code == (1 if complaint else 0), result.stdout + result.stderr
    assert complaint in result.stderr


def test_an_address_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        result = invoke("emulate", "--device", "matvec", "--tcp", f"127.0.0.1:{number}")
    assert result.exit_code == 1
    assert f"cannot listen on tcp://127.0.0.1:{number}: Address already in use" in result.stderr


def test_a_failed_check_makes_the_exit_code_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import astralora.devices as d

    def wrong_chip() -> d.Device:
        spec = d.DeviceSpec(name="wrong", in_features=3, out_features=2, num_controls=6, linear=True)
        return d.wrap_device(spec, program=lambda w: None, query=lambda x: x[:, :2] ** 2)

    monkeypatch.setattr("astralora.devices.registry._registered", {"wrong": wrong_chip})
    result = invoke("check", "--device", "wrong", "--only", "linearity", "--only", "shapes")
    assert result.exit_code == 1
    assert "linearity" in result.stdout
    assert "1 of 2 checks failed." in result.stderr
    as_json = invoke("check", "--device", "wrong", "--only", "linearity", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["checks"][0]["passed"] is False


def test_the_wire_adds_less_than_one_percent() -> None:
    result = invoke("bench", "transport", "--batch-size", "256", "--rounds", "10", "--json")
    assert result.exit_code == 0, result.stderr
    (record,) = json.loads(result.stdout)
    assert record["bytes_of_values"] == 2 * 256 * 256 * 4
    assert 0 < record["bytes_added_share"] < 0.01
    assert record["share"] > 0
