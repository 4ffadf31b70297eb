"""Scores of adapters: finding them, and keeping them in a file."""

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
from ..devices.files import write_atomically
from .adapted import AdaptedModel
from .config import PROJECTIONS, SHORTCUTS, read_toml
from .preservation import preserved
from .proxies import PROXIES, Batch, Loss, Metric, default_loss

__all__ = ["Scores", "TiedScoresWarning", "score"]


class TiedScoresWarning(UserWarning):
    """All adapters have the same score, which says nothing of any of them."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What adapters are worth.

    Attributes:
        proxy: by which they were scored.
        batches: on how many.
        values: by key, such as ``model_layer_0.q_proj``.
        costs: trained numbers for each of their ranks, by key.
    """

    proxy: str
    batches: int
    values: Mapping[str, float]
    costs: Mapping[str, float] = field(default_factory=dict)

    def to_toml(self) -> str:
        """A table for each layer."""
        tables = _nested(self.values)
        costs = {"costs": _nested(self.costs)} if self.costs else {}
        return tomli_w.dumps({"proxy": self.proxy, "batches": self.batches, **tables, **costs})

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            ConfigurationError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.to_toml())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigurationError: no such file, or none of scores.
        """
        content = read_toml(path)
        costs = _flat(content.pop("costs", {}), f"costs in {path}")
        proxy, batches = content.pop("proxy", None), content.pop("batches", 0)
        if not isinstance(proxy, str) or not isinstance(batches, int):
            raise ConfigurationError(f"{path} holds no scores: it does not say by which proxy, and on how many batches")
        return cls(proxy, batches, _flat(content, str(path)), costs)


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
    """Score every adapter of a model, all of them switched on, and leave everything bit for bit as it was.

    Args:
        adapted: the model.
        batches: data, of which as many are used as ``count``.
        proxy: a name in `PROXIES`.
        count: batches.
        loss: of the model on a batch.
        metric: for ``"alpha_test"``: how good the model is, the more the better; minus the mean loss unless given.
        tolerance: for ``"alpha_test"``: by how much that may fall.
        perturb: standard deviation of noise on every B in the meantime, for proxies that say nothing where B is zero.
        seed: of that noise.

    Raises:
        ConfigurationError: there is no such proxy, or it does not suit the model.

    Warns:
        TiedScoresWarning: all scores are the same.
    """
    kind = PROXIES.find(proxy)
    used = list(islice(batches, count))
    judge = PROXIES.make(proxy, loss=loss, metric=metric, tolerance=tolerance)
    with preserved(adapted, perturb=perturb, generator=derive_generator(seed, "perturb")):
        values = judge.score(adapted, used)
    if len(values) > 1 and len(set(values.values())) == 1 and not kind.may_tie:
        zero = kind.begins_at_zero and not any(bool(unit.weights[1].any()) for unit in adapted.units)
        why = ": every B is zero; train for some steps first, or perturb" if zero else ""
        warnings.warn(
            f"all {len(values)} adapters score {next(iter(values.values())):g} by {proxy!r}, which ranks them by "
            f"chance{why}",
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
        number = layer.removeprefix("model_layer_")
        if number == layer or not number.isdecimal() or not isinstance(table, dict):
            raise ConfigurationError(f"{layer} in {source} is no table of a layer, such as model_layer_0")
        for name, value in table.items():
            if name not in PROJECTIONS and name not in SHORTCUTS:
                raise ConfigurationError(
                    f"{layer}.{name} in {source} is no adapter; known are {', '.join((*PROJECTIONS, *SHORTCUTS))}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigurationError(f"{layer}.{name} in {source} must be a finite number of at least 0")
            values[f"{layer}.{name}"] = float(value)
    return values
