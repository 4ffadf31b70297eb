"""Show progress on standard error."""

from __future__ import annotations

from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .console import errors

__all__ = ["Bars", "Count"]


class Bars:
    """Show one or more progress bars.

    A bar appears at its first update, so that a command that refuses its options prints only the error.

    Args:
        transient: remove the bars at the end.
    """

    def __init__(self, *, transient: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=transient,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._progress.stop()

    def update(
        self, description: str, done: int | None = None, total: int | None = None, note: str = "", *, bar: str = ""
    ) -> None:
        """Update a bar.

        Args:
            description: text in front of the bar.
            done: amount done.
            total: amount to do; None where it is not known.
            note: text behind the bar.
            bar: name of the bar.
        """
        if not self._bars:
            self._progress.start()
        if bar not in self._bars:
            self._bars[bar] = self._progress.add_task(description, total=None, note="")
        self._progress.update(self._bars[bar], description=description, completed=done, total=total, note=note)

    def print(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line.rstrip(), highlight=False, soft_wrap=True)


class Count:
    """Show how many parts of a job are done, and the time.

    Args:
        parts: name of the parts.
    """

    def __init__(self, parts: str) -> None:
        self._progress = Progress(
            TextColumn(parts),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
        )
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, _: Any = None, total: int | None = None) -> None:
        """Count one more part; the benchmarks call it as a listener.

        Args:
            _: record of the finished part; it is not shown.
            total: number of parts, where it is known.
        """
        self._progress.update(self._bar, advance=1, total=total)
