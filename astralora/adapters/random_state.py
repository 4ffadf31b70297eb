"""Save, restore and isolate the global random generators of Python, numpy and torch."""

# Transformers and peft draw from numpy's legacy generator.
# ruff: noqa: NPY002

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["global_random_state", "isolated_random_state", "restore_random_state"]


def global_random_state() -> dict[str, Any]:
    """Return the state of the global generators as tensors and plain values."""
    name, words, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(words, dtype=np.int64)), *rest],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore a state of `global_random_state`."""
    name, words, *rest = state["numpy"]
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))


@contextmanager
def isolated_random_state(seed: int | None = None) -> Iterator[None]:
    """Let libraries draw from the global generators in a ``with`` block, and restore the generators at its end.

    Args:
        seed: seed of the generators in the block; None keeps their current state.
    """
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
