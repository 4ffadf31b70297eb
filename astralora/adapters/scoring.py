"""Score the adapters of a model, and save and load scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import tomli_w

from ..common.errors import ConfigurationError
from ..devices import derive_generator
from ..devices.files import file_name, write_atomically, write_errors
from ..devices.parsing import read_toml
from ..devices.validation import printable
from .adapted import AdaptedModel
from .config import LAYER, PROJECTIONS, SHORTCUTS
from .proxies import PROXIES, Batch, Loss, Metric, default_loss
from .temporary_changes import prepared_for_scoring

__all__ = ["Scores", "TiedScoresWarning", "score"]


class TiedScoresWarning(UserWarning):
    """Warn that all adapters have the same score, so that their order is random."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Hold the scores of adapters.

    Attributes:
        proxy: name of the proxy.
        batches: number of batches that the proxy used.
        values: scores by key, such as ``model_layer_0.q_proj``.
        costs: number of trained parameters per rank, by key.
    """

    proxy: str
    batches: int
    values: Mapping[str, float]
    costs: Mapping[str, float] = field(default_factory=dict)

    def to_toml(self) -> str:
        """Return the text of a TOML file with a table for each layer."""
        tables = _nested(self.values)
        costs = {"costs": _nested(self.costs)} if self.costs else {}
        return tomli_w.dumps({"proxy": self.proxy, "batches": self.batches, **tables, **costs})

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        with write_errors(path, error=ConfigurationError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.to_toml())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a file that `save` wrote.

        Raises:
            ConfigurationError: the file cannot be read, or holds no scores.
        """
        content = read_toml(path, error=ConfigurationError)
        costs = content.pop("costs", {})
        if not isinstance(costs, dict):
            raise ConfigurationError(f"costs in {file_name(path)} must be a table of layers")
        costs = _flat(costs, f"costs in {file_name(path)}")
        proxy, batches = content.pop("proxy", None), content.pop("batches", 0)
        if not isinstance(proxy, str) or not isinstance(batches, int) or isinstance(batches, bool):
            raise ConfigurationError(f"{file_name(path)} holds no scores: it has no proxy, or no number of batches")
        return cls(proxy, batches, _flat(content, file_name(path)), costs)


def score(
    adapted: AdaptedModel,
    batches: Iterable[Batch],
    proxy: str = "grad_norm",
    *,
    count: int = 32,
    loss: Loss = default_loss,
    metric: Metric | None = None,
    tolerance: float = 0.01,
    perturb: float = 0.0,
    seed: int = 0,
) -> Scores:
    """Score every adapter of a model with all adapters on, and restore the model bit for bit.

    Args:
        adapted: adapted model.
        batches: batches of data.
        proxy: a name in `PROXIES`.
        count: number of batches to use.
        loss: function that computes the loss of the model on a batch.
        metric: for ``"alpha_test"``: function that measures the quality of the model, higher is better; minus the mean
            loss unless given.
        tolerance: for ``"alpha_test"``: allowed decrease of this quality.
        perturb: standard deviation of noise on every B while scoring, for proxies that score 0 if B is zero.
        seed: seed of this noise.

    Raises:
        ConfigurationError: the proxy is unknown, or does not work for the model.

    Warns:
        TiedScoresWarning: all scores are equal.
    """
    kind = PROXIES.find(proxy)
    used = list(islice(batches, count))
    scorer = PROXIES.make(proxy, loss=loss, metric=metric, tolerance=tolerance)
    with prepared_for_scoring(adapted, perturb=perturb, generator=derive_generator(seed, "perturb")):
        values = scorer.score(adapted, used)
    if len(values) > 1 and len(set(values.values())) == 1 and not kind.may_tie:
        zero = kind.begins_at_zero and not any(bool(unit.weights[1].any()) for unit in adapted.units)
        reason = ": every B is zero; train for some steps first, or perturb" if zero else ""
        warnings.warn(
            f"all {len(values)} adapters score {next(iter(values.values())):g} by {proxy!r}, so that their order is "
            f"random{reason}",
            TiedScoresWarning,
            stacklevel=2,
        )
    costs = {unit.key: unit.cost / unit.rank for unit in adapted.units}
    return Scores(proxy, len(used), values, costs)


def _nested(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    tables: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        layer, _, name = key.partition(".")
        tables.setdefault(layer, {})[name] = value
    return tables


def _flat(tables: Mapping[str, Any], source: str) -> dict[str, float]:
    values = {}
    for layer, table in tables.items():
        if not LAYER.fullmatch(layer) or not isinstance(table, dict):
            raise ConfigurationError(
                f"{printable(layer)} in {source} is not the table of a layer, such as model_layer_0"
            )
        for name, value in table.items():
            if name not in PROJECTIONS and name not in SHORTCUTS:
                known = ", ".join((*PROJECTIONS, *SHORTCUTS))
                raise ConfigurationError(f"{layer}.{printable(name)} in {source} is not an adapter; known are {known}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigurationError(f"{layer}.{name} in {source} must be a finite number of at least 0")
            values[f"{layer}.{name}"] = float(value)
    return values
