"""Read and write the folder of an adapter run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically
from .settings import AdapterRun

__all__ = ["AdapterFolder"]


class AdapterFolder:
    """Read and write config.toml, metrics.jsonl and summary.json of a run.

    The folder also holds checkpoint/, and history.jsonl and frequency.toml of a dynamic run.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_free(self) -> None:
        """Refuse a path that exists, unless it is an empty folder.

        Raises:
            ConfigurationError: the path is a file, or a folder with files.
        """
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigurationError(f"{self.path} is not an empty folder; give another")

    def begin(self, config: AdapterRun) -> None:
        """Make the folder of a new run, and write its config.toml and an empty metrics.jsonl.

        Raises:
            ConfigurationError: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.toml", config.to_toml())
            write_atomically(self.path / "metrics.jsonl", "")
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be used: {error.strerror or error}") from None

    def config(self) -> AdapterRun:
        """Read the configuration of the run.

        Raises:
            ConfigurationError: the folder holds no run.
        """
        file = self.path / "config.toml"
        if not file.is_file():
            raise ConfigurationError(f"{self.path} holds no run: it has no config.toml")
        return AdapterRun.load(file)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def rewind(self, count: int) -> list[dict[str, Any]]:
        """Cut metrics.jsonl to its first lines, since a resumed run writes the others again.

        Args:
            count: number of lines to keep.

        Returns:
            The records in these lines.
        """
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:count] if file.exists() else []
        write_atomically(file, "".join(lines))
        return [json.loads(line) for line in lines]

    def summary(self) -> dict[str, Any] | None:
        """Read the summary of the run, or return None if the run has not ended."""
        file = self.path / "summary.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, the last file of a run."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
