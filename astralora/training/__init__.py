"""Runs from the command line: configuration, planning, training, and the run folder."""

from .config import AllocateConfig, DeviceConfig, MethodConfig, RunConfig
from .folder import RunFolder
from .plan import Plan, plan
from .trainer import Interrupted, recall_run, train

__all__ = [
    "AllocateConfig",
    "DeviceConfig",
    "Interrupted",
    "MethodConfig",
    "Plan",
    "RunConfig",
    "RunFolder",
    "plan",
    "recall_run",
    "train",
]
