"""What all commands share: two consoles, errors in one sentence, and JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from ..common.errors import ConfigurationError
from ..devices import DeviceError

__all__ = ["errors", "one_sentence_errors", "out", "print_json"]

out = Console()
"""For results."""

errors = Console(stderr=True)
"""For progress and complaints: results stay clean for pipes."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def one_sentence_errors(command: _Command) -> _Command:
    """Let a command with a ``debug`` parameter fail in one sentence, unless that is set."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (DeviceError, ConfigurationError) as error:
            if kwargs.get("debug"):
                raise
            # The message may hold brackets of its own, which are not markup.
            errors.print("[bold red]error:[/]", Text(str(error)), soft_wrap=True)
            raise typer.Exit(1) from None

    return guarded  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
