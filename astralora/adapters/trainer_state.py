"""Save and restore the state of a transformers Trainer as tensors and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .random_state import global_random_state

__all__ = ["restore_trainer", "train_from", "trainer_state"]


def trainer_state(trainer: Any) -> dict[str, Any]:
    """Return the counters, optimizer and schedule of a Trainer that is training, and the global random state."""
    # The log is in metrics.jsonl already, and would grow with every step.
    counters = {**asdict(trainer.state), "log_history": []}
    return {
        "counters": json.dumps(counters),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict(),
        "random": global_random_state(),
    }


def restore_trainer(trainer: Any, state: Mapping[str, Any]) -> None:
    """Restore the optimizer and the schedule that a Trainer has made, from `trainer_state`."""
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["schedule"])


def train_from(trainer: Any, state: Mapping[str, Any]) -> None:
    """Continue training from the counters of `trainer_state`; without this, a Trainer reads them only from a file."""
    with TemporaryDirectory() as folder:
        Path(folder, "trainer_state.json").write_text(state["counters"], encoding="utf-8")
        trainer.train(resume_from_checkpoint=folder)
