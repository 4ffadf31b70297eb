"""What the README shows has to run."""

import re
from pathlib import Path

import pytest

import devices.registry as registry

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", range(3))
@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_an_example_runs_as_it_stands(example: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(EXAMPLES[example], "README.md", "exec"), names)
    assert names.keys() & {"device", "layer", "model"}


def test_every_command_that_is_shown_exists() -> None:
    from astralora.cli.app import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    shown = set(re.findall(r"`astralora (\w+)", README))
    assert shown <= known
    assert shown
