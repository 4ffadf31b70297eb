"""Test that options have one name, one meaning and readable help on every command."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from astralora.cli.adapters.options import TrainOptions
from astralora.cli.app import app
from astralora.cli.calibrate import CalibrateConfig
from astralora.cli.choices import CHOICES, IMPAIRMENTS
from astralora.cli.runs import RunOptions
from astralora.cli.settings import nest, parse_settings
from astralora.common.errors import ConfigurationError
from astralora.simulators import PRESETS
from astralora.training import RunConfig

COMMANDS = {
    "train", "plan", "devices", "emulate", "check", "calibrate", "report",
    *(f"adapters {name}" for name in ("train", "test", "score", "search")),
    *(f"bench {name}" for name in ("efficiency", "fidelity", "overhead", "refresh", "simulators", "identification",
                                   "drift", "lowrank", "adapters", "session", "transport")),
}  # fmt: skip


def commands() -> Iterator[tuple[str, Any]]:
    """Return every command with its path."""
    root: Any = typer.main.get_command(app)
    for name, item in root.commands.items():
        below = getattr(item, "commands", None)
        yield from ((f"{name} {child}", it) for child, it in below.items()) if below else [(name, item)]


def options(item: Any) -> dict[str, Any]:
    """Return the options of a command by their long names."""
    return {name: each for each in item.params for name in each.opts if name.startswith("--")}


def test_every_command_is_listed() -> None:
    assert {name for name, _ in commands()} == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_complete_and_fits_into_80_columns(name: str) -> None:
    run = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, [*name.split(), "--help"])
    assert run.exit_code == 0, run.output
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in run.stdout, "nothing is cut"
    assert not re.search(r"\{\w+\}", run.stdout.partition("\n\n")[2]), "all placeholders are filled in"
    (example,) = (line.strip() for line in lines if line.strip().startswith("Example: "))
    words = example.split()
    assert words[1 : 2 + len(name.split())] == ["astralora", *name.split()]
    item = dict(commands())[name]
    assert set(re.findall(r" (--[\w-]+)", example)) <= options(item).keys()


def test_an_option_has_one_help_text_on_all_commands() -> None:
    texts: dict[str, set[str]] = {}
    for _, item in commands():
        for option, parameter in options(item).items():
            texts.setdefault(option, set()).add(parameter.help)
    one = ("--set", "--config", "--seed", "--seeds", "--batch-size", "--json", "--debug", "--impairments", "--size",
           "--in-features", "--out-features", "--budget-programs", "--budget-vectors", "--epochs", "--steps", "--lr",
           "--resume", "--turn-on", "--warmup-steps", "--calibration")  # fmt: skip
    assert {option: len(texts[option]) for option in one} == dict.fromkeys(one, 1)
    # One device or several; a file, a folder or the folder of a run.
    assert len(texts["--device"]) == 2
    assert len(texts["--out"]) == 3


def test_common_options_are_there() -> None:
    for name, item in commands():
        present = options(item)
        assert {"--json", "--debug"} <= present.keys(), name
        assert "--out" in present or name == "devices"
        assert present.get("--out") is None or "-o" in present["--out"].opts
        arguments = [each.name for each in item.params if not any(name.startswith("-") for name in each.opts)]
        assert arguments == {"report": ["source"], "adapters test": ["run"], "adapters search": ["scores"]}.get(
            name, []
        )
        for old in ("--devices", "--methods", "--sizes", "--batch", "--bench", "--report", "--model-set", "--warmup"):
            assert old not in present, name


@pytest.mark.parametrize("group", [RunOptions, TrainOptions])
def test_every_option_of_a_configuration_sets_a_key_of_it(group: Any) -> None:
    for key in group.keys.values():
        parse_settings([f"{key}=1"], group.model(), group.open_keys)


def test_the_impairments_are_those_of_the_simulators() -> None:
    assert tuple(PRESETS) == IMPAIRMENTS


@pytest.mark.parametrize("placeholder", CHOICES)
def test_every_placeholder_has_names(placeholder: str) -> None:
    assert len(list(CHOICES[placeholder]())) > 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["device.options.port=tcp://127.0.0.1:5000"], {"device": {"options": {"port": "tcp://127.0.0.1:5000"}}}),
        (["device.options.a=0.9", "seed = 3"], {"device": {"options": {"a": 0.9}}, "seed": 3}),
        (['device.impairments="lab"', "in_features=8"], {"device": {"impairments": "lab"}, "in_features": 8}),
    ],
)
def test_set_takes_the_same_keys_everywhere(settings: list[str], expected: Any) -> None:
    for model in (RunConfig, CalibrateConfig):
        assert nest(parse_settings(settings, model)) == expected


@pytest.mark.parametrize("model", [RunConfig, CalibrateConfig])
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("colour", "--set takes KEY=VALUE, not 'colour'"),
        ("colour=1", r"^colour in the configuration: there is no such key; known are .*in_features"),
        (
            "device.colour=1",
            r"^device.colour in the configuration: there is no such key; known are name, impairments, seed",
        ),
        ("port=x", r"^port in the configuration: there is no such key; known are .*device\.\*"),
        ("seed.x=1", "^seed.x cannot be set: seed is a value and has no keys"),
        ("device=mrr", "^device in the configuration is a table; set one of its keys: name,"),
    ],
)
def test_a_wrong_key_is_refused_with_the_known_ones(setting: str, complaint: str, model: type[BaseModel]) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as error:
        parse_settings([setting], model)
    assert "\n" not in str(error.value)
