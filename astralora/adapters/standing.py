"""Where the Trainer of a run stands, as tensors and plain values."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "restore_random_state", "restore_trainer", "train_from", "trainer_state"]


def random_state() -> dict[str, Any]:
    """The state of the global generators, which the models and the Trainer of transformers draw from."""
    name, words, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(words, dtype=np.int64)), *rest],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    name, words, *rest = state["numpy"]
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002


def trainer_state(trainer: Any) -> dict[str, Any]:
    """Of a Trainer at work: its counters, optimizer, schedule, and the global generators."""
    # Its log is metrics.jsonl, and would grow with every step here.
    counters = {**asdict(trainer.state), "log_history": []}
    return {
        "counters": json.dumps(counters),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict(),
        "random": random_state(),
    }


def restore_trainer(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put optimizer and schedule of a Trainer that has made them back to what `trainer_state` found."""
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.lr_scheduler.load_state_dict(state["schedule"])


def train_from(trainer: Any, state: Mapping[str, Any]) -> None:
    """Let a Trainer go on; it reads its counters from a file only."""
    with TemporaryDirectory() as folder:
        Path(folder, "trainer_state.json").write_text(state["counters"], encoding="utf-8")
        trainer.train(resume_from_checkpoint=folder)
