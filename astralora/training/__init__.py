"""Configure, plan and run trainings from the command line, and keep them in folders."""

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
