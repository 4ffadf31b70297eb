"""Write and read the folder of a run."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically, write_errors
from .checkpoint import load_state, save_state
from .comparison import Configuration, refuse_changes
from .config import RunConfig
from .lock import LOCK_FILES, FolderLock
from .metrics import Metrics, format_line, format_lines
from .reading import read_file
from .summary import load_summary, save_summary

__all__ = ["Folder", "RunFolder"]

_log = logging.getLogger(__name__)

_METRICS, _CONFIG, _SUMMARY, _CHECKPOINT = "metrics.jsonl", "config.toml", "summary.json", "checkpoint"

# Unfinished files of processes that were killed, as `write_atomically` and the lock name them.
_DRAFT = re.compile(
    r"\.?(config\.toml|metrics\.jsonl|summary\.json|state\.json|tensors-|history\.jsonl|frequency\.toml"
    r"|report\.html|\w+\.png|\.?lock).*\.tmp"
)

# What a checkpoint holds beside the state of the run.
_CONFIG_KEY, _LINES_KEY, _INPUTS_KEY = "config", "lines", "inputs"

# Name of a checkpoint's index, and size of its file of tensors where it has none, in bytes.
_INDEX, _BLANK = "state.json", 16


class Folder:
    """Hold config.toml, metrics.jsonl, summary.json and checkpoint/ of a run of any kind.

    A run holds its folder from `begin` or `hold` to `release`, so that no other process writes into it.

    Args:
        path: path of the folder.
    """

    advice = "give another folder"
    """Remedy in the error message for a folder that is not empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path)
        self._lines = 0
        self._inputs: dict[str, str] = {}

    # -- ownership --------------------------------------------------------------------------

    def hold(self) -> None:
        """Hold the folder for this process, and remove drafts that a killed process left.

        Raises:
            ConfigurationError: another process holds the folder, or it cannot be written to.
        """
        with self.writes():
            self._lock.acquire()
            for folder in (self.path, self.path / _CHECKPOINT):
                for file in folder.iterdir() if folder.is_dir() else ():
                    if _DRAFT.fullmatch(file.name) and file.is_file():
                        file.unlink()

    def release(self) -> None:
        """Let other processes have the folder; do nothing if it is not held."""
        self._lock.release()

    def check_free(self) -> None:
        """Refuse a folder that is not empty, or in which another run is about to begin.

        Drafts and locks of a run that was killed before it began do not count.

        Raises:
            ConfigurationError: the folder is not free, or is no folder.
        """
        if not self.path.exists():
            return
        with self.writes():
            held = self._lock.held
            if self.path.is_dir() and any((self.path / name).exists() for name in LOCK_FILES) and not held:
                self._lock.acquire()
                self._lock.release()
            if not self.path.is_dir() or not all(_is_left_over(file) for file in self.path.iterdir()):
                raise ConfigurationError(f"{self.path} is not an empty folder; {self.advice}")

    # -- beginning and resuming -------------------------------------------------------------

    def start(self, config: Configuration, inputs: Iterable[Path] = ()) -> None:
        """Create and hold the folder of a new run, and write its first checkpoint and its config.toml.

        The first checkpoint holds the configuration only, with which that of a resumed run is compared.

        Args:
            config: configuration of the run.
            inputs: files that the result depends on, which a resumed run finds unchanged; see `check_inputs`.

        Raises:
            ConfigurationError: the folder is not free, or cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be used: {error.strerror or error}") from None
        self.hold()
        try:
            self.check_free()
            self._inputs = {str(file): _hash(file) for file in inputs}
            self.save_state({}, config)
            with self.writes(_CONFIG):
                write_atomically(self.path / _CONFIG, config.to_toml())
        except BaseException:
            self.release()
            raise

    @staticmethod
    def find_config(path: Path) -> Path:
        """Return the path of a folder's config.toml.

        Raises:
            ConfigurationError: the folder has none.
        """
        file = path / _CONFIG
        if not file.is_file():
            raise ConfigurationError(f"{path} holds no run: it has no config.toml")
        return file

    def save_state(self, state: Mapping[str, Any], config: Configuration, lines: int | None = None) -> None:
        """Replace the checkpoint.

        Args:
            state: state of the run.
            config: configuration of the run.
            lines: number of lines of metrics.jsonl at this state; all that were written unless given.

        Raises:
            ConfigurationError: the checkpoint cannot be written; the one before is kept.
        """
        lines = self._lines if lines is None else lines
        saved = {**state, _CONFIG_KEY: config.to_toml(), _LINES_KEY: lines, _INPUTS_KEY: self._inputs}
        self._lock.check()
        with self.writes(_CHECKPOINT):
            self._make_metrics_durable()
            save_state(self.path / _CHECKPOINT, saved)

    def load_state(self, config: Configuration) -> dict[str, Any] | None:
        """Return the checkpoint, with the number of lines of metrics.jsonl at this state as "lines".

        None is returned where the run was stopped before its first checkpoint with a state.

        Args:
            config: configuration of the run, as in config.toml.

        Raises:
            ConfigurationError: the checkpoint is missing or damaged, or was saved with another configuration.
        """
        state = load_state(self.path / _CHECKPOINT)
        if state is None:
            raise ConfigurationError(f"{self.path} has no checkpoint to resume from; begin a new run")
        kinds = {_CONFIG_KEY: str, _LINES_KEY: int, _INPUTS_KEY: dict}
        if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
            raise ConfigurationError(f"{self.path / _CHECKPOINT} is not the checkpoint of a run; begin a new run")
        refuse_changes(config, state.pop(_CONFIG_KEY), self.path)
        self._inputs = state.pop(_INPUTS_KEY)
        return state if state.keys() != {_LINES_KEY} else None

    def check_inputs(self) -> None:
        """Refuse to resume the run, whose checkpoint was loaded, with other files than those that it began with.

        Raises:
            ConfigurationError: a file has changed or is missing.
        """
        for name, digest in self._inputs.items():
            if _hash(Path(name)) != digest:
                raise ConfigurationError(
                    f"{name} is missing or has changed since the run in {self.path} began; restore it, "
                    f"or begin a new run"
                )

    # -- metrics and summary ----------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl.

        Raises:
            ConfigurationError: the line cannot be written.
        """
        self._lock.check()
        line = format_line(self._lines + 1, record).encode()
        with self.writes(_METRICS), (self.path / _METRICS).open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                # A part of a line would damage the next one.
                with suppress(OSError):
                    file.truncate(end)
                raise
        self._lines += 1

    def metrics(self, lines: int | None = None) -> Metrics:
        """Return all undamaged lines of metrics.jsonl.

        Args:
            lines: number of lines that were written at least; those that this object has written unless given.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        file = self.path / _METRICS
        return Metrics.parse(read_file(file) or b"", file, self._lines if lines is None else lines)

    def rewind(self, line: int) -> Metrics:
        """Drop the lines after a line from metrics.jsonl, since a resumed run writes them again.

        Damaged lines are reported and dropped.

        Args:
            line: number of the last line to keep.

        Returns:
            The lines that were kept.
        """
        found = self.metrics(line)
        kept = found.up_to(line)
        self._report_damage(found)
        with self.writes(_METRICS):
            write_atomically(self.path / _METRICS, format_lines(kept))
        self._lines = line
        return kept

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the folder.

        Raises:
            ConfigurationError: it cannot be written.
        """
        with self.writes(name):
            write_atomically(self.path / name, content)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, the last file of a run."""
        self._lock.check()
        with self.writes(_SUMMARY):
            save_summary(self.path / _SUMMARY, summary)

    def summary(self) -> dict[str, Any] | None:
        """Return the content of summary.json; None where the run has not ended.

        Raises:
            ConfigurationError: the file is damaged.
        """
        return load_summary(self.path / _SUMMARY)

    @contextmanager
    def writes(self, name: str = "") -> Generator[None]:
        """Report problems of the disk within a ``with`` block in one sentence.

        Args:
            name: name of the file that the block writes; the folder itself unless given.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        resumes = (self.path / _CONFIG).exists()
        remedy = f"and resume the run with --resume '{self.path}'" if resumes else "or give another folder"
        with write_errors(self.path / name, error=ConfigurationError, remedy=f"mend this, {remedy}"):
            yield

    def finished_with(self, config: Configuration) -> dict[str, Any] | None:
        """Return the summary of a finished run; None where the run has not ended.

        Args:
            config: configuration of the run, as in config.toml.

        Raises:
            ConfigurationError: a file is damaged, or config.toml was changed.
        """
        summary = self.summary()
        if summary is not None and (self.path / _CHECKPOINT / _INDEX).exists():
            state = self.load_state(config)
            self._report_damage(self.metrics(0 if state is None else state[_LINES_KEY]))
        return summary

    def _report_damage(self, metrics: Metrics) -> None:
        """Tell which lines of metrics.jsonl are damaged."""
        damage = metrics.describe_damage()
        if damage is not None:
            _log.warning("%s: %s", self.path, damage)
        if metrics.incomplete:
            _log.warning("%s: the last line of metrics.jsonl is damaged or cut short, and was left out", self.path)

    def _make_metrics_durable(self) -> None:
        """Write the metrics to the disk itself, because a checkpoint must not survive them."""
        if (self.path / _METRICS).exists():
            with (self.path / _METRICS).open("ab") as file:
                os.fsync(file.fileno())


class RunFolder(Folder):
    """Hold a training run: the files of `Folder`, report.html and plots.

    Args:
        path: path of the folder.
        config: configuration of the run.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        super().__init__(path)
        self.config = config
        self.advice = f"give another folder, or resume its run with --resume '{path}'"

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a finished run; see `Folder.finished_with`."""
        return self.finished_with(self.config)

    def begin(self) -> None:
        """Create and hold the folder of a new run, and write its config.toml.

        Raises:
            ConfigurationError: the folder is not free, or cannot be created.
        """
        calibration = self.config.device.calibration
        self.start(self.config, [] if calibration is None else [Path(calibration)])

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open the folder of a run that was started earlier.

        Raises:
            ConfigurationError: the folder holds no run.
        """
        return cls(path, RunConfig.load(cls.find_config(path)))

    def save(self, state: Mapping[str, Any], lines: int | None = None) -> None:
        """Replace the checkpoint; see `Folder.save_state`."""
        self.save_state(state, self.config, lines)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint; None where the run has no state yet; see `Folder.load_state`."""
        return self.load_state(self.config)


def _hash(file: Path) -> str:
    return hashlib.sha256(read_file(file) or b"").hexdigest()


def _is_left_over(file: Path) -> bool:
    """Return whether a run that was killed before it began left this file."""
    if file.name != _CHECKPOINT:
        return file.name in LOCK_FILES or _DRAFT.fullmatch(file.name) is not None
    if not file.is_dir() or not all(map(_is_blank, file.iterdir())):
        return False
    try:
        state = load_state(file)
    except ConfigurationError:
        return False
    return state is None or state.keys() == {_CONFIG_KEY, _LINES_KEY, _INPUTS_KEY}


def _is_blank(file: Path) -> bool:
    """Return whether a file of a checkpoint holds no tensors of a run; its index is looked at separately."""
    tensors = file.suffix == ".safetensors" and file.name.startswith("tensors-") and file.stat().st_size <= _BLANK
    return tensors or file.name == _INDEX or _DRAFT.fullmatch(file.name) is not None
