"""Test that mistakes of the command line are refused in one sentence."""

import errno
from typing import Any

import pytest

from astralora.cli.settings import parse_settings
from astralora.common.errors import ConfigurationError
from astralora.training import RunConfig

SMALL = ("--device", "matvec", "--in-features", 4, "--out-features", 4)


def sentence(run: Any) -> str:
    """Return the error of a command, without its first word."""
    assert run.exit_code == 1, run.output
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    return str(run.stderr.removeprefix("error: ").strip())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("check", *SMALL, "--device", "mzi"), "--device is given twice; give it once"),
        (("check", *SMALL, "-o", "a.json", "--out", "b.json"), "--out is given twice; give it once"),
        (
            ("calibrate", *SMALL, "--characterise", "--no-characterise"),
            "--characterise/--no-characterise is given twice; give it once",
        ),
        (("plan", "--set", "seed=1", "--set", "seed=2"), "--set seed is given twice; give it once"),
        (
            ("check", *SMALL, "--out", "check.pdf"),
            "check.pdf cannot be written: this command writes .json or .html; name it, for example, check.json",
        ),
        (("plan", "--out", "x.html"), "x.html cannot be written: this command writes .json; name it,"),
        (("emulate", *SMALL, "--out", "x.json"), "x.json cannot be written: this command writes .toml; name it,"),
        (("report", "x", "--out", "x.txt"), "x.txt cannot be written: this command writes .html; name it,"),
        (("plan", "--set", "seed=99999999999999999999"), "seed: Input should be less than 9223372036854775808"),
        (("check", "--device", ""), "device.name in the configuration: String should have at least 1 character"),
        (("check", "--device", "a\nb"), "there is no device named 'a\\\\nb'; known are"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused(arguments: tuple[object, ...], complaint: str, command: Any) -> None:
    assert sentence(command(*arguments)).startswith(complaint.replace("\\\\n", "\\n"))


def test_a_flag_may_be_repeated(command: Any) -> None:
    assert command("check", *SMALL, "--only", "spec", "--no-measure", "--json", "--json").exit_code == 0


def test_a_disk_that_fails_is_reported(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr("astralora.cli.check.check_device", fail)
    assert sentence(command("check", *SMALL)) == "runs/x/metrics.jsonl: No space left on device"


def test_a_line_break_in_a_setting_is_no_second_key() -> None:
    assert parse_settings(["task=1\nseed = 2"], RunConfig) == {"task": "1\nseed = 2"}
    with pytest.raises(ConfigurationError, match=r"a\\nb in the configuration: there is no such key"):
        parse_settings(["a\nb=1"], RunConfig)
