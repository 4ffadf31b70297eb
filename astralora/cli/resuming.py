"""Resume interrupted runs: ``--resume`` of the commands that train."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..common.errors import ConfigurationError
from ..training import Interrupted
from .console import errors, print_json

__all__ = ["print_complete_run", "refuse_other_options", "reports_how_to_resume"]

_INTERRUPTED = 130  # exit code of a command that Ctrl-C has ended


def refuse_other_options(options: object, output: Path | None) -> None:
    """Refuse options that would change a resumed run.

    Args:
        options: the command's group of options, whose fields all have defaults.
        output: ``--out``.

    Raises:
        ConfigurationError: another option than ``--resume``, ``--json`` and ``--debug`` was given.
    """
    if output is not None or options != type(options)():
        raise ConfigurationError(
            "--resume continues a run unchanged: the only other options allowed are --json and --debug"
        )


def print_complete_run(folder: Path, summary: dict[str, Any], json: bool) -> None:
    """Report that the run is complete, and print its summary for machines."""
    errors.print(f"The run in {folder} is complete; there is nothing to resume.", soft_wrap=True)
    if json:
        print_json(summary)


@contextmanager
def reports_how_to_resume(command: str, folder: Path) -> Generator[None]:
    """Print the command that resumes an interrupted run, and exit with code 130.

    Args:
        command: command that resumes a run, such as ``astralora train``.
        folder: the run's folder.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt, SystemExit) as stop:
        if not (folder / "config.toml").is_file():
            raise  # interrupted before the run began
        after = f" after step {stop.step}" if isinstance(stop, Interrupted) else ""
        errors.print(
            f"Interrupted{after}. Resume with: {command} --resume {shlex.quote(str(folder))}",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(_INTERRUPTED) from None
