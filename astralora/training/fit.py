"""Train one model through its epochs, one step at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ..budgets.sample_allocator import SampleAllocator
from ..devices import derive_generator
from ..nn.layer import BlackBoxLinear
from ..tasks import Splits, Task
from .config import RunConfig
from .spending import spent_by_device

__all__ = ["Fit", "Record"]

Record = dict[str, Any]
"""One line of metrics.jsonl."""


class Fit:
    """Train one model; used for the digital baseline and for models with devices.

    Args:
        config: configuration of the run.
        task: task, for loss and score.
        splits: data.
        model: model, which is trained in place.

    Attributes:
        sessions: session of each device, by the name of its first layer.
    """

    def __init__(self, config: RunConfig, task: Task, splits: Splits, model: nn.Module) -> None:
        self.config = config
        self.task = task
        self.splits = splits
        self.model = model
        self.layers = [layer for layer in model.modules() if isinstance(layer, BlackBoxLinear)]
        named = {name: layer for name, layer in model.named_modules() if isinstance(layer, BlackBoxLinear)}
        first_names = {id(layer.session): name for name, layer in reversed(named.items())}
        self.sessions = {name: named[name].session for name in reversed(first_names.values())}
        self.steps_per_epoch = ceil(len(splits.train_inputs) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, self.total_steps, eta_min=config.final_learning_rate
        )
        self.allocator: SampleAllocator | None = None
        if config.allocate is not None and self.layers:
            self.allocator = SampleAllocator(model, **config.allocate.model_dump())
        self.step = 0
        self.wall_seconds = 0.0
        self._sums = {"loss": 0.0, "correct": 0, "samples": 0, "residual": 0.0, "saturation": 0.0}

    def run(self) -> Iterator[Record]:
        """Train from the current step to the end, and yield a record after each step and each epoch."""
        while self.step < self.total_steps:
            start = time.perf_counter()
            epoch, position = divmod(self.step, self.steps_per_epoch)
            rows = self._order(epoch)[position * self.config.batch_size :][: self.config.batch_size]
            record = self.train_step(rows)
            self.step += 1
            record = {"event": "step", "step": self.step, "epoch": epoch + 1, **record}
            ends = position + 1 == self.steps_per_epoch
            summary = self._close_epoch(epoch + 1) if ends else None
            self.wall_seconds += time.perf_counter() - start
            yield {**record, **spent_by_device(self.sessions), "wall_seconds": self.wall_seconds}
            if summary is not None:
                yield {**summary, **spent_by_device(self.sessions), "wall_seconds": self.wall_seconds}

    def train_step(self, rows: Tensor) -> Record:
        """Make one update from the training samples ``rows``."""
        self.model.train()
        targets = self.splits.train_targets[rows]
        self.optimizer.zero_grad(set_to_none=True)
        with self.allocator.step() if self.allocator is not None else nullcontext():
            outputs = self.model(self.splits.train_inputs[rows])
            loss = self.task.loss(outputs, targets)
            loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        sums = self._sums
        sums["loss"] += float(loss.detach()) * len(rows)
        sums["correct"] += self.task.correct(outputs.detach(), targets)
        sums["samples"] += len(rows)
        record: Record = {"loss": float(loss.detach())}
        if self.allocator is not None:
            record["samples"] = dict(self.allocator.samples)
        if self.layers:
            residuals = [layer.surrogate.residual or 0.0 for layer in self.layers]
            record["surrogate_residual"] = sum(residuals) / len(residuals)
            record["saturation"] = max(layer.saturation for layer in self.layers)
            stale = [layer.estimator.staleness for layer in self.layers if layer.estimator.staleness is not None]
            if stale:
                record["staleness"] = max(stale)
            healths = [layer.health for layer in self.layers if layer.health is not None]
            if healths:
                record["surrogate_health"] = min(healths)
            sums["residual"] += record["surrogate_residual"] * len(rows)
            sums["saturation"] += record["saturation"] * len(rows)
        return record

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return mean loss and accuracy on the test split."""
        self.model.eval()
        inputs, targets = self.splits.test_inputs, self.splits.test_targets
        loss, correct = 0.0, 0
        size = max(self.config.batch_size, 512)
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            outputs = self.model(x)
            loss += float(self.task.loss(outputs, y)) * len(x)
            correct += self.task.correct(outputs, y)
        return loss / len(inputs), correct / len(inputs)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the rest of the run depends on, without the devices."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "allocator": None if self.allocator is None else self.allocator.state_dict(),
            "step": self.step,
            "sums": dict(self._sums),
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.allocator is not None and state["allocator"] is not None:
            self.allocator.load_state_dict(state["allocator"])
        self.step = state["step"]
        self._sums = dict(state["sums"])
        self.wall_seconds = state["wall_seconds"]

    def _order(self, epoch: int) -> Tensor:
        """Return the order of the training samples in an epoch."""
        # The order depends on the epoch's number alone, so that a resumed run needs no history.
        generator = derive_generator(self.config.seed, "order", epoch)
        return torch.randperm(len(self.splits.train_inputs), generator=generator)

    def _close_epoch(self, epoch: int) -> Record:
        """Evaluate, and return the record of an epoch."""
        test_loss, test_accuracy = self.evaluate()
        sums, samples = self._sums, self._sums["samples"]
        record: Record = {
            "event": "epoch",
            "epoch": epoch,
            "step": self.step,
            "train_loss": sums["loss"] / samples,
            "train_accuracy": sums["correct"] / samples,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "learning_rate": self.scheduler.get_last_lr()[0],
        }
        if self.layers:
            record["surrogate_residual"] = sums["residual"] / samples
            record["saturation"] = sums["saturation"] / samples
        self._sums = dict.fromkeys(sums, 0)
        return record
