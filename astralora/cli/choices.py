"""List the names that options take, for help texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import get_args

__all__ = ["CHOICES", "IMPAIRMENTS", "fill_in"]

IMPAIRMENTS = ("ideal", "lab", "harsh")
"""Presets of simulated devices. Only the registry may import the simulators, so a test compares them with the table."""


def _methods() -> Iterable[str]:
    from ..nn.methods import METHODS

    return METHODS


def _estimators() -> Iterable[str]:
    from ..estimators import ESTIMATORS

    return ESTIMATORS


def _surrogates() -> Iterable[str]:
    from ..surrogates import SURROGATES

    return SURROGATES


def _tasks() -> Iterable[str]:
    from ..tasks import TASKS

    return TASKS


def _drift_tasks() -> Iterable[str]:
    from ..benchmarks.drift import MODELS

    return MODELS


def _rankings() -> Iterable[str]:
    from ..budgets.sample_allocator import Ranking

    return get_args(Ranking)


def _checks() -> Iterable[str]:
    from ..devices.testing import CHECKS

    return CHECKS


def _measurements() -> Iterable[str]:
    from ..characterisation import MEASUREMENTS

    return MEASUREMENTS


def _protocols() -> Iterable[str]:
    from ..devices import list_emulators

    return list_emulators()


def _faults() -> Iterable[str]:
    from ..devices import FaultPlan

    return FaultPlan.model_fields


def _models() -> Iterable[str]:
    from ..adapters.models import TINY

    return TINY


def _objectives() -> Iterable[str]:
    from ..adapters.run_config import AdapterRun

    return get_args(AdapterRun.model_fields["objective"].annotation)


def _collections() -> Iterable[str]:
    from ..adapters.sources import COLLECTIONS

    return COLLECTIONS


def _proxies() -> Iterable[str]:
    from ..adapters.proxies import PROXIES

    return PROXIES


def _groups() -> Iterable[str]:
    from ..adapters.search import Groups

    return get_args(Groups)


def _adapter_methods() -> Iterable[str]:
    from ..benchmarks import ADAPTER_METHODS

    return ADAPTER_METHODS


def _lowrank_methods() -> Iterable[str]:
    from ..benchmarks import LOWRANK

    return LOWRANK


CHOICES: dict[str, Callable[[], Iterable[str]]] = {
    "adapter_methods": _adapter_methods,
    "checks": _checks,
    "collections": _collections,
    "drift_tasks": _drift_tasks,
    "estimators": _estimators,
    "faults": _faults,
    "groups": _groups,
    "impairments": lambda: IMPAIRMENTS,
    "lowrank_methods": _lowrank_methods,
    "measurements": _measurements,
    "methods": _methods,
    "models": _models,
    "objectives": _objectives,
    "protocols": _protocols,
    "proxies": _proxies,
    "rankings": _rankings,
    "surrogates": _surrogates,
    "tasks": _tasks,
}
"""Functions that return the names for each placeholder in help texts. They import their modules when called."""


def fill_in(text: str) -> str:
    """Replace each placeholder, such as ``{methods}``, by the names in its table."""
    return re.sub(r"\{(\w+)\}", lambda match: ", ".join(CHOICES[match[1]]()), text)
