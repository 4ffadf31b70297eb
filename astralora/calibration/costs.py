"""Add up the cost of a calibration over all its parts, before and after interruptions."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..common.errors import ConfigurationError
from ..devices import Budget, Session
from ..devices.files import file_name, remove_file
from ..devices.validation import first_problem
from .unfinished import REMEDY, read_unfinished, write_unfinished

__all__ = ["CostRecord", "Spent"]

_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Spent:
    """Hold the cost of a part of a calibration.

    Attributes:
        programs: number of programs.
        queries: number of queries.
        vectors: number of vectors.
        wall_seconds: time in seconds.
    """

    programs: int = 0
    queries: int = 0
    vectors: int = 0
    wall_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.programs + other.programs,
            self.queries + other.queries,
            self.vectors + other.vectors,
            self.wall_seconds + other.wall_seconds,
        )

    def at_least(self, other: Spent) -> Spent:
        """Return the larger of each pair of numbers."""
        return Spent(
            max(self.programs, other.programs),
            max(self.queries, other.queries),
            max(self.vectors, other.vectors),
            max(self.wall_seconds, other.wall_seconds),
        )


class _File(BaseModel):
    """Describe the content of the file that keeps the cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    serial_number: str | None
    seed: int
    budget: Budget
    programs: _Count
    queries: _Count
    vectors: _Count
    wall_seconds: float = Field(ge=0, allow_inf_nan=False)


class CostRecord:
    """Count what a calibration costs, and keep the count in a file until the record is written.

    The file is written after every setting and when an error or Ctrl-C ends the calibration. After a kill, the
    operations since the last write are unknown, so that the total is a lower bound.

    Args:
        session: session of the chip; what it has spent already does not count.
        path: file that keeps the count; None if there is none.
        seed: seed of the calibration.
        budget: budget of the calibration, as the user gave it.

    Attributes:
        earlier: cost of the parts before this one; 0 unless the file belongs to the same calibration of this chip.

    Raises:
        ConfigurationError: the file is damaged.
    """

    def __init__(self, session: Session, path: Path | None, seed: int, budget: Budget) -> None:
        self._session, self._path, self._seed, self._budget = session, path, seed, budget
        self._began, self._start = session.usage, time.perf_counter()
        self._loaded = Spent()
        self.earlier = Spent() if path is None or not path.exists() else self._load(path)

    def include(self, part: Spent) -> None:
        """Correct the earlier cost to at least the sum of all measurements that were loaded from files."""
        self._loaded += part
        self.earlier = self.earlier.at_least(self._loaded)

    @property
    def total(self) -> Spent:
        """Return the cost of all parts together."""
        now = self._session.usage - self._began
        return self.earlier + Spent(now.programs, now.queries, now.vectors, time.perf_counter() - self._start)

    @property
    def remaining(self) -> Budget:
        """Return what all parts so far have left of the budget; None where the user has set no limit."""
        total, left = self.total, {}
        for name in ("programs", "vectors"):
            limit = getattr(self._budget, name)
            left[name] = None if limit is None else max(0, limit - getattr(total, name))
        return Budget(**left)

    def save(self) -> None:
        """Write the file.

        Raises:
            DeviceError: the file cannot be written.
        """
        if self._path is None:
            return
        spec, total = self._session.spec, self.total
        content = _File(
            device=spec.name,
            serial_number=spec.serial_number,
            seed=self._seed,
            budget=self._budget,
            programs=total.programs,
            queries=total.queries,
            vectors=total.vectors,
            wall_seconds=total.wall_seconds,
        )
        write_unfinished(self._path, content.model_dump(mode="json"))

    @contextmanager
    def saved_after_errors(self) -> Generator[None]:
        """Write the file if an error or Ctrl-C ends the ``with`` block after operations of the chip."""
        try:
            yield
        except BaseException:
            if self._session.usage != self._began:
                with suppress(Exception):  # the first error is the one to report
                    self.save()
            raise

    def forget(self) -> None:
        """Delete the file."""
        if self._path is not None:
            remove_file(self._path)

    def _load(self, path: Path) -> Spent:
        """Return the cost in the file; 0 if it belongs to another chip, seed or budget."""
        try:
            found = _File.model_validate(read_unfinished(path))
        except ValidationError as error:
            raise ConfigurationError(f"{file_name(path)}: {first_problem(error)}; {REMEDY}") from None
        spec = self._session.spec
        # Some chips report their serial number only when they are opened.
        serials = {found.serial_number, spec.serial_number} - {None}
        if (found.device, found.seed, found.budget) != (spec.name, self._seed, self._budget) or len(serials) > 1:
            return Spent()
        return Spent(found.programs, found.queries, found.vectors, found.wall_seconds)
