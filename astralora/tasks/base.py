"""What the trainer needs to know of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Splits", "Task"]


@dataclass(frozen=True, slots=True)
class Splits:
    """The data of a task, ready for the model: first axis the samples."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


class Task(ABC):
    """A data set, a model, and the places in the model where devices belong.

    Args:
        in_features: width of the device layer's input.
        out_features: width of its output.
    """

    def __init__(self, in_features: int = 256, out_features: int = 128) -> None:
        self.in_features = in_features
        self.out_features = out_features

    @property
    @abstractmethod
    def device_layers(self) -> tuple[str, ...]:
        """Names of the `nn.Linear` layers that devices replace."""

    @abstractmethod
    def splits(self) -> Splits:
        """The data, always the same."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """The digital model, initialised from the seed without touching the global random state."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch."""

    @abstractmethod
    def correct(self, outputs: Tensor, targets: Tensor) -> int:
        """How many of a batch are right."""
