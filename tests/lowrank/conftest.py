"""Provide models for tests of OIALR."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Everything(nn.Module):
    """Combine every supported kind of layer in one model: (batch, 2, 12, 12) -> (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(2, 12, 3, stride=2)
        self.conv1d = nn.Conv1d(12, 16, 3)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d(x).tanh().flatten(2)
        x = self.conv1d(x).tanh().mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        y: Tensor = self.head(self.linear(x.mean(dim=1)).tanh())
        return y


@pytest.fixture
def everything(a_throwaway_global_random_state: Any) -> Everything:
    return Everything()


@pytest.fixture
def images(a_throwaway_global_random_state: Any) -> Tensor:
    return torch.randn(8, 2, 12, 12)


def basis(rows: int, rank: int, generator: torch.Generator) -> Tensor:
    """Draw a random basis with orthonormal columns, (rows, rank)."""
    Q: Tensor = torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64, generator=generator))[0]
    return Q


def linear(model: nn.Sequential, place: int) -> nn.Linear:
    """Return the linear layer at a place of a model."""
    layer = model[place]
    assert isinstance(layer, nn.Linear)
    return layer


def square_net(seed: int = 0) -> nn.Sequential:
    """Make two square layers, which full-rank bases do not restrict, and a head: (batch, 24) -> (batch, 3)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)).double()
