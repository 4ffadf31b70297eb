"""Models that tests of optimizers train."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

# No test asks a hub for anything; libraries read this when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def net(a_throwaway_global_random_state: Any) -> nn.Sequential:
    """Matrices, a convolution that is worth compressing, and small vectors."""
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
    """Four micro-batches of images and targets."""
    return [(torch.randn(5, 1, 4, 4), torch.randn(5, 2)) for _ in range(4)]
