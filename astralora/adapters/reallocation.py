"""Change during training which adapters are on: dynamic HeteroLoRA."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError
from ..devices import derive_generator
from ..devices.files import write_atomically
from .adapted import AdaptedModel
from .proxies import PROXIES, Batch, Loss, Proxy, default_loss, unit_grad_norm, unit_snip
from .scoring import Scores, score
from .search import Groups, choose

__all__ = ["Choice", "Reallocation"]

_REUSED = {"grad_norm": unit_grad_norm, "snip": unit_snip}
"""Functions that score an adapter by the gradients of training, by proxy."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Record which adapters were switched on, and their scores.

    Attributes:
        step: number of the step, from 0.
        enabled: keys of the adapters that were on afterwards.
        scores: scores of all adapters by key; empty if the choice needs no scores.
    """

    step: int
    enabled: list[str]
    scores: dict[str, float]


class Reallocation:
    """Score all adapters at regular intervals, and switch the best ones on and the others off.

    An adapter that is off has no gradient and does not query a device. Its weights and its optimizer state do not
    change while it is off. Zhang et al., arXiv 2406.14956.

    In a training loop, call `before_step` before every step, and `after_backward` when the gradients are computed. With
    ``reuse``, scores come from these gradients, and devices get no extra queries. Each interval then starts with a step
    in which all adapters are on.

    Args:
        adapted: adapted model.
        batches: batches to score on, taken as needed; unused with ``reuse``.
        interval: number of steps between choices.
        turn_on: share of the adapters to keep on; 0 and 1 need no scores.
        proxy: a name in `PROXIES`.
        count: number of batches for each scoring.
        groups: ``"combined"`` ranks all adapters together, ``"separated"`` ranks LoRA and shortcuts separately,
            ``"off"`` keeps shortcuts off.
        warmup_steps: number of steps with all adapters on before the first choice.
        reuse: whether to score by the gradients of training; None means True if adapters are on devices and the proxy
            allows it.
        perturb: standard deviation of noise on every B; see `astralora.adapters.scoring.score`.
        loss: function that computes the loss of the model on a batch.
        seed: seed of the noise and of the order of ties.
        listener: function called with every choice.

    Attributes:
        history: all choices.
        reuse: whether scores come from the gradients of training.

    Raises:
        ConfigurationError: an argument is not valid, or ``batches`` are missing.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        batches: Iterator[Batch] | None = None,
        *,
        interval: int,
        turn_on: float = 0.25,
        proxy: str = "grad_norm",
        count: int = 32,
        groups: Groups = "combined",
        warmup_steps: int = 0,
        reuse: bool | None = None,
        perturb: float = 0.0,
        loss: Loss = default_loss,
        seed: int = 0,
        listener: Callable[[Choice], None] | None = None,
    ) -> None:
        if interval < 1:
            raise ConfigurationError(f"interval must be at least one step, not {interval}")
        kind: type[Proxy] = PROXIES.find(proxy)
        choose({}, turn_on, groups)  # checks both arguments
        if reuse is None:
            reuse = proxy in _REUSED and any(unit.devices for unit in adapted.units)
        if reuse and proxy not in _REUSED:
            raise ConfigurationError(
                f"{proxy!r} cannot score by the gradients of training; {' and '.join(_REUSED)} can"
            )
        if not reuse and batches is None and kind is not PROXIES.find("constant") and 0 < turn_on < 1:
            raise ConfigurationError(f"{proxy!r} scores adapters on batches; pass batches, or reuse=True")
        self.adapted, self.history = adapted, list[Choice]()
        self._batches = None if batches is None else _CountedBatches(batches)
        self._interval, self._turn_on = interval, turn_on
        self._proxy, self._count, self._groups, self._warmup = proxy, count, groups, warmup_steps
        self.reuse, self._perturb, self._loss = reuse, perturb, loss
        self._seed, self._listener = seed, listener
        self._generator = derive_generator(seed, "reallocation")
        self._choice_due = False  # after the backward pass of this step
        self._means: dict[str, tuple[float, float]] = {}
        adapted.set_enabled(True)
        if groups == "off":
            adapted.set_enabled({unit.key: unit.family == "lora" for unit in adapted.units})

    def before_step(self, step: int) -> None:
        """Choose which adapters are on, if an interval has ended.

        With ``reuse``, switch all adapters on for this step instead; `after_backward` then chooses.

        Args:
            step: number of the step that follows, from 0.
        """
        if step < self._warmup or (step - self._warmup) % self._interval:
            return
        if not 0 < self._turn_on < 1 or self._proxy == "constant":
            scores = dict.fromkeys((unit.key for unit in self.adapted.units), 1.0)
            self._choose(step, scores, record=self._proxy == "constant")
        elif self.reuse:
            self.adapted.set_enabled({unit.key: self._can_be_on(unit.key) for unit in self.adapted.units})
            self._choice_due = True
        else:
            result = score(
                self.adapted,
                self._batches or (),
                self._proxy,
                count=self._count,
                loss=self._loss,
                perturb=self._perturb,
                seed=self._seed + step,
            )
            self._choose(step, dict(result.values))

    def after_backward(self, step: int) -> None:
        """Score the adapters by their gradients, and choose if a choice is due; do nothing without ``reuse``.

        Args:
            step: number of the present step, from 0.
        """
        if not self.reuse:
            return
        decay = 1 - 1 / self._interval
        for unit in self.adapted.units:
            if unit.enabled:
                total, weight = self._means.get(unit.key, (0.0, 0.0))
                self._means[unit.key] = decay * total + _REUSED[self._proxy](unit), decay * weight + 1
        if self._choice_due:
            self._choice_due = False
            means = {key: total / weight for key, (total, weight) in self._means.items()}
            self._choose(step, {unit.key: means.get(unit.key, 0.0) for unit in self.adapted.units})

    def frequency(self) -> Scores:
        """Return how often each adapter was on, as a share of all choices; `search` accepts it as scores."""
        count = max(len(self.history), 1)
        on = [key for choice in self.history for key in choice.enabled]
        values = {unit.key: on.count(unit.key) / count for unit in self.adapted.units}
        return Scores("frequency", len(self.history), values, {u.key: u.cost / u.rank for u in self.adapted.units})

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next choices depend on, without the model and its switches."""
        return {
            "history": [asdict(choice) for choice in self.history],
            "generator": self._generator.get_state(),
            "drawn": 0 if self._batches is None else self._batches.count,
            "surveys": self._choice_due,
            "means": dict(self._means),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another reallocation with the same arguments and the same batches.

        Args:
            state: result of `state_dict`; the batches that were used before it are skipped.
        """
        self.history = [Choice(**choice) for choice in state["history"]]
        self._generator.set_state(state["generator"])
        while self._batches is not None and self._batches.count < state["drawn"]:
            next(self._batches)
        self._choice_due = state["surveys"]
        self._means = dict(state["means"])

    def save(self, folder: Path) -> None:
        """Write history.jsonl, with one choice in each line, and frequency.toml."""
        lines = [json.dumps(asdict(choice)) + "\n" for choice in self.history]
        write_atomically(folder / "history.jsonl", "".join(lines))
        self.frequency().save(folder / "frequency.toml")

    def _can_be_on(self, key: str) -> bool:
        return self._groups != "off" or self.adapted.unit(key).family == "lora"

    def _choose(self, step: int, scores: dict[str, float], *, record: bool = True) -> None:
        kept = choose(scores, self._turn_on, self._groups, self._generator)
        self.adapted.set_enabled({unit.key: unit.key in kept for unit in self.adapted.units})
        self.history.append(Choice(step, kept, scores if record else {}))
        if self._listener is not None:
            self._listener(self.history[-1])


class _CountedBatches(Iterator[Batch]):
    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.count = batches, 0

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.count += 1
        return batch
