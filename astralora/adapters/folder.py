"""Read and write the folder of an adapter run."""

from __future__ import annotations

from typing import Any

from ..training.folder import Folder
from .run_config import AdapterRun

__all__ = ["AdapterFolder"]


class AdapterFolder(Folder):
    """Hold an adapter run: the files of `Folder`, checkpoint/, and for a dynamic run history.jsonl and frequency.toml.

    Args:
        path: path of the folder.
    """

    def begin(self, config: AdapterRun) -> None:
        """Create the folder of a new run, and write its config.toml and an empty metrics.jsonl.

        Raises:
            ConfigurationError: the folder cannot be created.
        """
        self.create(config.to_toml())
        self.write_metrics([])

    def config(self) -> AdapterRun:
        """Read the configuration of the run.

        Raises:
            ConfigurationError: the folder holds no run.
        """
        return AdapterRun.load(self.find_config(self.path))

    def rewind(self, count: int) -> list[dict[str, Any]]:
        """Cut metrics.jsonl to its first lines, since a resumed run writes the others again.

        Args:
            count: number of lines to keep.

        Returns:
            The records in these lines.
        """
        kept = self.metrics()[:count]
        self.write_metrics(kept)
        return kept
