"""Provide models and batches for tests of optimizers."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

# Tests do not use the network; Hugging Face's libraries read this at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def net(a_throwaway_global_random_state: Any) -> nn.Sequential:
    """Make a model with matrices, a convolution that compression makes smaller, and small vectors."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.Tanh(),
        nn.Linear(24, 32),
        nn.LayerNorm(32),
        nn.Linear(32, 2),
    )


@pytest.fixture
def batches(a_throwaway_global_random_state: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw four micro-batches of images and targets."""
    return [(torch.randn(5, 1, 4, 4), torch.randn(5, 2)) for _ in range(4)]
