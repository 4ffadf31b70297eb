"""Adapters that take turns: dynamic HeteroLoRA."""

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
from .proxies import PROXIES, Batch, Loss, Proxy, default_loss, unit_norm, unit_snip
from .scoring import Scores, score
from .search import Groups, choose

__all__ = ["Choice", "Reallocation"]

_REUSED = {"grad_norm": unit_norm, "snip": unit_snip}
"""Scores that can be read off the gradients of training itself."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which adapters were switched on, and why.

    Attributes:
        step: before which; counted from 0.
        enabled: the keys of those on.
        scores: of all, by key; empty where nothing had to be chosen.
    """

    step: int
    enabled: list[str]
    scores: dict[str, float]


class Reallocation:
    """Every so many steps: all adapters on, score them, keep the best on and the rest off.

    What is off has no gradient and asks nothing of a device; its weights and its optimizer state stay as they are until
    its next turn. Zhang et al., arXiv 2406.14956.

    Call `before_step` in front of every training step and `after_backward` when its gradients are there; any loop will
    do. With ``reuse``, scores come from those gradients, so that nothing is asked anew: each interval then begins with
    one step of all adapters.

    Args:
        adapted: the model.
        batches: data to score on, drawn from as needed; not used with ``reuse``.
        interval: steps from one choice to the next.
        turn_on: share of the adapters that are kept on; 0 and 1 need no scores.
        proxy: a name in `PROXIES`.
        count: batches that adapters are scored on.
        groups: ``"combined"`` ranks all together, ``"separated"`` LoRA and shortcuts each by themselves, ``"off"``
            leaves shortcuts off.
        warmup_steps: with all on, before the first choice.
        reuse: score by the gradients of training; None for where adapters are on devices and the proxy can.
        perturb: see `astralora.adapters.scoring.score`.
        loss: of the model on a batch.
        seed: of perturbations, and of the order of ties.
        listener: told every choice as it is made.

    Attributes:
        history: all choices.

    Raises:
        ConfigurationError: an interval, proxy or share that cannot be.
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
        choose({}, turn_on, groups)  # refuses what cannot be
        if reuse is None:
            reuse = proxy in _REUSED and any(unit.devices for unit in adapted.units)
        if reuse and proxy not in _REUSED:
            raise ConfigurationError(
                f"{proxy!r} cannot be read off training's own gradients; {' and '.join(_REUSED)} can"
            )
        if not reuse and batches is None and kind is not PROXIES.find("constant") and 0 < turn_on < 1:
            raise ConfigurationError(f"{proxy!r} scores adapters on batches; give some, or reuse=True")
        self.adapted, self.history = adapted, list[Choice]()
        self._batches = None if batches is None else _Counted(batches)
        self._interval, self._turn_on = interval, turn_on
        self._proxy, self._count, self._groups, self._warmup = proxy, count, groups, warmup_steps
        self._reuse, self._perturb, self._loss = reuse, perturb, loss
        self._seed, self._listener = seed, listener
        self._generator = derive_generator(seed, "reallocation")
        self._surveys = False
        self._means: dict[str, tuple[float, float]] = {}
        adapted.set_enabled(True)
        if groups == "off":
            adapted.set_enabled({unit.key: unit.family == "lora" for unit in adapted.units})

    def before_step(self, step: int) -> None:
        """Choose anew if it is time.

        Args:
            step: the step that is about to be made, counted from 0.
        """
        if step < self._warmup or (step - self._warmup) % self._interval:
            return
        if not 0 < self._turn_on < 1 or self._proxy == "constant":
            scores = dict.fromkeys((unit.key for unit in self.adapted.units), 1.0)
            self._choose(step, scores, record=self._proxy == "constant")
        elif self._reuse:
            self.adapted.set_enabled({unit.key: self._ranked(unit.key) for unit in self.adapted.units})
            self._surveys = True
        else:
            found = score(
                self.adapted,
                self._batches or (),
                self._proxy,
                count=self._count,
                loss=self._loss,
                perturb=self._perturb,
                seed=self._seed + step,
            )
            self._choose(step, dict(found.values))

    def after_backward(self, step: int) -> None:
        """Look at the gradients of a step that is being made, before the optimizer uses them."""
        if not self._reuse:
            return
        memory = 1 - 1 / self._interval
        for unit in self.adapted.units:
            if unit.enabled:
                total, weight = self._means.get(unit.key, (0.0, 0.0))
                self._means[unit.key] = memory * total + _REUSED[self._proxy](unit), memory * weight + 1
        if self._surveys:
            self._surveys = False
            means = {key: total / weight for key, (total, weight) in self._means.items()}
            self._choose(step, {unit.key: means.get(unit.key, 0.0) for unit in self.adapted.units})

    def frequency(self) -> Scores:
        """How often each adapter was on, as a share of all choices; `search` makes a configuration of it."""
        count = max(len(self.history), 1)
        on = [key for choice in self.history for key in choice.enabled]
        values = {unit.key: on.count(unit.key) / count for unit in self.adapted.units}
        return Scores("frequency", len(self.history), values, {u.key: u.cost / u.rank for u in self.adapted.units})

    def state_dict(self) -> dict[str, Any]:
        """All that the next choices depend on, but for the model and which adapters are on in it."""
        return {
            "history": [asdict(choice) for choice in self.history],
            "generator": self._generator.get_state(),
            "drawn": 0 if self._batches is None else self._batches.count,
            "surveys": self._surveys,
            "means": dict(self._means),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one was, of the same arguments and with its batches from the first on.

        Args:
            state: what `state_dict` returned.
        """
        self.history = [Choice(**choice) for choice in state["history"]]
        self._generator.set_state(state["generator"])
        while self._batches is not None and self._batches.count < state["drawn"]:
            next(self._batches)
        self._surveys = state["surveys"]
        self._means = dict(state["means"])

    def save(self, folder: Path) -> None:
        """Write history.jsonl, a choice a line, and frequency.toml."""
        lines = [json.dumps(asdict(choice)) + "\n" for choice in self.history]
        write_atomically(folder / "history.jsonl", "".join(lines))
        self.frequency().save(folder / "frequency.toml")

    def _ranked(self, key: str) -> bool:
        return self._groups != "off" or self.adapted.unit(key).family == "lora"

    def _choose(self, step: int, scores: dict[str, float], *, record: bool = True) -> None:
        kept = choose(scores, self._turn_on, self._groups, self._generator)
        self.adapted.set_enabled({unit.key: unit.key in kept for unit in self.adapted.units})
        self.history.append(Choice(step, kept, scores if record else {}))
        if self._listener is not None:
            self._listener(self.history[-1])


class _Counted(Iterator[Batch]):
    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.count = batches, 0

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.count += 1
        return batch
