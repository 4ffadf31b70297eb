"""Test ``--resume`` of the commands that train."""

from pathlib import Path
from typing import Any

import pytest

import astralora.adapters.run
from astralora.adapters.folder import AdapterFolder
from astralora.adapters.run_config import AdapterRun


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Let adapter runs be interrupted as soon as they have begun."""
    pytest.importorskip("transformers")

    def run(config: AdapterRun, folder: AdapterFolder, *, resume: bool, listener: Any) -> None:
        if not resume:
            folder.begin(config)
        listener({"event": "step", "step": 1, "loss": 1.0})
        raise KeyboardInterrupt

    monkeypatch.setattr(astralora.adapters.run, "train_run", run)
    return KeyboardInterrupt


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_adapter_run_prints_how_to_resume(command: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text\n" * 20)
    for arguments in (("--data", "corpus.txt", "-o", "my run"), ("--resume", "my run")):
        run = command("adapters", "train", *arguments)
        assert run.exit_code == 130
        assert "Interrupted. Resume with: astralora adapters train --resume 'my run'" in run.stderr


@pytest.mark.parametrize("arguments", [("train", "--epochs", 3), ("adapters", "train", "--dynamic"),
    ("train", "-o", "x"), ("adapters", "train", "--set", "seed=1"), ("train", "--config", "x.toml")])  # fmt: skip
def test_other_options_are_refused_beside_resume(arguments: tuple[object, ...], command: Any) -> None:
    run = command(*arguments, "--resume", "nowhere")
    assert run.exit_code == 1
    assert "--resume continues a run unchanged" in run.stderr


@pytest.mark.parametrize("arguments", [("train",), ("adapters", "train")])
def test_a_folder_without_a_run_cannot_be_resumed(arguments: tuple[str, ...], command: Any) -> None:
    run = command(*arguments, "--resume", "nowhere", "--json")
    assert run.exit_code == 1
    assert run.stderr.strip() == "error: nowhere holds no run: it has no config.toml"
