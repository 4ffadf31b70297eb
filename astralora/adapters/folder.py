"""Read and write the folder of an adapter run."""

from __future__ import annotations

from typing import Any

from ..training.folder import Folder
from .run_config import AdapterRun

__all__ = ["AdapterFolder"]


class AdapterFolder(Folder):
    """Hold an adapter run: the files of `Folder`, and for a dynamic run history.jsonl and frequency.toml.

    Args:
        path: path of the folder.
    """

    def begin(self, config: AdapterRun) -> None:
        """Create and hold the folder of a new run, and write its config.toml and an empty metrics.jsonl.

        Raises:
            ConfigurationError: the folder is not free, or cannot be created.
        """
        self.start(config)
        self.rewind(0)

    def config(self) -> AdapterRun:
        """Read the configuration of the run.

        Raises:
            ConfigurationError: the folder holds no run.
        """
        return AdapterRun.load(self.find_config(self.path))

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint; None where the run has no state yet; see `Folder.load_state`."""
        return self.load_state(self.config())

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a finished run; see `Folder.finished_with`."""
        return self.finished_with(self.config())
