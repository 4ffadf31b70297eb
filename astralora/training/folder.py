"""Write and read the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically
from .checkpoint import load_state, save_state
from .config import RunConfig

__all__ = ["Folder", "RunFolder"]


class Folder:
    """Hold config.toml, metrics.jsonl and summary.json of a run of any kind.

    Args:
        path: path of the folder.
    """

    advice = "give another folder"
    """Remedy in the error message for a folder that is not empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_free(self) -> None:
        """Refuse a folder that is not empty.

        Raises:
            ConfigurationError: the folder is not empty, or is no folder.
        """
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigurationError(f"{self.path} is not an empty folder; {self.advice}")

    def create(self, config: str) -> None:
        """Create the folder of a new run, and write its config.toml.

        Args:
            config: configuration as TOML.

        Raises:
            ConfigurationError: the folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.toml", config)
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be used: {error.strerror or error}") from None

    @staticmethod
    def find_config(path: Path) -> Path:
        """Return the path of a folder's config.toml.

        Raises:
            ConfigurationError: the folder has none.
        """
        file = path / "config.toml"
        if not file.is_file():
            raise ConfigurationError(f"{path} holds no run: it has no config.toml")
        return file

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return all complete lines of metrics.jsonl."""
        records: list[dict[str, Any]] = []
        file = self.path / "metrics.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break  # an interruption cut this line short
        return records

    def write_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl by these records."""
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, the last file of a run."""
        write_atomically(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """Return the content of summary.json; None where the run has not ended.

        Raises:
            ConfigurationError: the file is damaged.
        """
        file = self.path / "summary.json"
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{file} is damaged: {error}") from None
        return content


class RunFolder(Folder):
    """Hold a training run: the files of `Folder`, checkpoint/, report.html and plots.

    Args:
        path: path of the folder.
        config: configuration of the run.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        super().__init__(path)
        self.config = config
        self.advice = f"give another folder, or resume its run with --resume '{path}'"

    def begin(self) -> None:
        """Create the folder of a new run, and write its config.toml.

        Raises:
            ConfigurationError: the folder is not empty, or cannot be created.
        """
        self.check_free()
        self.create(self.config.to_toml())

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open the folder of a run that was started earlier.

        Raises:
            ConfigurationError: the folder holds no run.
        """
        return cls(path, RunConfig.load(cls.find_config(path)))

    def rewind(self, step: int | None) -> None:
        """Drop the metrics of steps after ``step``, which will be repeated; all metrics where it is None."""
        self.write_metrics(
            record
            for record in self.metrics()
            if step is not None and (record["event"] == "baseline" or record["step"] <= step)
        )

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        save_state(self.path / "checkpoint", state)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint; None where there is none yet."""
        return load_state(self.path / "checkpoint")
