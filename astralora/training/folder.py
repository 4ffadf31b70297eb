"""The run on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically
from .checkpoint import load_state, save_state
from .config import RunConfig

__all__ = ["RunFolder"]


class RunFolder:
    """A run's folder: config.toml, metrics.jsonl, summary.json, checkpoint/, report.html and pictures.

    Args:
        path: the folder.
        config: of the run in it.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    def check_free(self) -> None:
        """Refuse a folder that holds something already.

        Raises:
            ConfigurationError: says so.
        """
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigurationError(
                f"{self.path} is not an empty folder; give another, or go on with its run by --resume '{self.path}'"
            )

    def begin(self) -> None:
        """Make the folder of a new run, and write its config.toml.

        Raises:
            ConfigurationError: the folder holds something already, or cannot be made.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.toml", self.config.to_toml())
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be used: {error.strerror or error}") from None

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """The folder of a run that was begun earlier.

        Raises:
            ConfigurationError: there is no run in it.
        """
        if not (path / "config.toml").is_file():
            raise ConfigurationError(f"{path} holds no run: it has no config.toml")
        return cls(path, RunConfig.load(path / "config.toml"))

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        records: list[dict[str, Any]] = []
        file = self.path / "metrics.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the line that an interruption cut short
        return records

    def rewind(self, step: int | None) -> None:
        """Drop the metrics that will be taken again: of steps after ``step``, or all where it is None."""
        kept = [
            json.dumps(record) + "\n"
            for record in self.metrics()
            if step is not None and (record["event"] == "baseline" or record["step"] <= step)
        ]
        write_atomically(self.path / "metrics.jsonl", "".join(kept))

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        save_state(self.path / "checkpoint", state)

    def load(self) -> dict[str, Any] | None:
        """The checkpoint; None where the run was interrupted before its first."""
        return load_state(self.path / "checkpoint")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """summary.json; None where the run has not ended."""
        file = self.path / "summary.json"
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{file} is damaged: {error}") from None
        return content
