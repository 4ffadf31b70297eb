"""Define the interface of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Splits", "Task"]


@dataclass(frozen=True, slots=True)
class Splits:
    """Hold the data of a task, with the samples along the first axis."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


class Task(ABC):
    """Provide a data set, a model, and the names of its device layers.

    Args:
        in_features: width of the device layer's input.
        out_features: width of the device layer's output.
    """

    def __init__(self, in_features: int = 256, out_features: int = 128) -> None:
        self.in_features = in_features
        self.out_features = out_features

    @property
    @abstractmethod
    def device_layers(self) -> tuple[str, ...]:
        """Return the names of the `nn.Linear` layers that devices replace."""

    @abstractmethod
    def splits(self) -> Splits:
        """Return the data, always split in the same way."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """Return the digital model, initialised from the seed without touching the global random state."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""

    @abstractmethod
    def correct(self, outputs: Tensor, targets: Tensor) -> int:
        """Return the number of correct predictions in a batch."""
