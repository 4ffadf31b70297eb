"""Test the configuration of runs."""

from pathlib import Path
from typing import Any

import pytest

from astralora import ConfigurationError
from astralora.cli.runs import run_config
from astralora.training import RunConfig


def test_file_overrides_defaults_and_command_line_overrides_both(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('epochs = 3\nseed = 5\n[device]\nname = "slm"\n[method.options]\nrank = 4\n')
    config = run_config(file, ["method.options.samples=7", "device.options.note=a b"], {"seed": 6})
    assert (config.epochs, config.seed, config.device.name, config.batch_size) == (3, 6, "slm", 50)
    assert config.method.options == {"rank": 4, "samples": 7}
    assert config.device.options == {"note": "a b"}


def test_a_written_configuration_is_complete_and_can_be_loaded(tmp_path: Path) -> None:
    config = RunConfig.load(None, {"device": {"seed": 3, "options": {"a": 0.9}}, "budget": {"programs": 10}})
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert RunConfig.load(tmp_path / "config.toml") == config
    assert "learning_rate = 0.01" in config.to_toml(), "defaults too: they may change"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epoch = 3", "epoch in .*: .*; known are task, seed, epochs"),
        ("[device]\ncolour = 1", "device.colour in .*; known are name, impairments, seed, calibration, options"),
        ("epochs = 0", "epochs in .*greater than 0"),
        ("epochs = ", "is not TOML"),
        ("learning_rate = nan", "learning_rate"),
    ],
)
def test_an_invalid_file_is_reported_in_one_sentence(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint) as error:
        RunConfig.load(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["epochs"], "--set takes KEY=VALUE, not 'epochs'"),
        (["=3"], "--set takes KEY=VALUE"),
        (["epochs=2", "epochs.x=3"], "epochs is a value and has no keys"),
        (["device.nothing=3"], "known are name, impairments, seed, calibration, options"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_sentence(settings: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        run_config(None, settings, {})
