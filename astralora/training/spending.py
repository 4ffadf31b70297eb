"""Find out what a killed run spent after its last checkpoint.

A killed run has no checkpoint of its last steps, but its metrics hold what every device had spent after each of them. A
resumed run repeats these steps. It begins with the higher counts, because the devices carried out the operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..devices import Purpose, Session, Usage

__all__ = ["add_repeated", "repeated_usage", "spent_by_device"]

_COUNTED = ("programs", "queries", "vectors", "retries")


def spent_by_device(sessions: Mapping[str, Session]) -> dict[str, Any]:
    """Return the operations of all devices so far, for a line of metrics.jsonl.

    Args:
        sessions: sessions by the name of their layer.

    Returns:
        The sums of all devices; with several devices, also the counters of each as "devices".
    """
    usages = {name: session.usage for name, session in sessions.items()}
    if not usages:
        return {}
    spent: dict[str, Any] = {name: sum(getattr(usage, name) for usage in usages.values()) for name in _COUNTED}
    spent["hardware_seconds"] = sum(usages[name].hardware_seconds(session.spec) for name, session in sessions.items())
    if len(usages) > 1:
        spent["devices"] = {
            device: {name: getattr(usage, name) for name in _COUNTED} for device, usage in usages.items()
        }
    return spent


def add_repeated(states: Mapping[str, Mapping[str, Any]], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add what was spent after a checkpoint to the saved states of the sessions, as operations that are repeated.

    Args:
        states: state of each session in the checkpoint, by the name of its layer.
        records: records of metrics.jsonl after the checkpoint.

    Returns:
        The states with the higher counts.
    """
    later = list(records)
    raised: dict[str, Any] = {}
    for device, state in states.items():
        saved = sum((Usage(**counters) for counters in state["usage"].values()), Usage())
        counts = [record.get("devices", {}).get(device, record if len(states) == 1 else {}) for record in later]
        more = {
            name: max([count.get(name, 0) for count in counts] + [getattr(saved, name)]) - getattr(saved, name)
            for name in _COUNTED
        }
        before = Usage(**state["usage"].get(Purpose.REPEATED, {}))
        usage = {**state["usage"], str(Purpose.REPEATED): (before + Usage(**more)).to_dict()}
        raised[device] = {**state, "usage": usage if any(more.values()) else state["usage"]}
    return raised


def repeated_usage(sessions: Iterable[Session]) -> Usage:
    """Return what all devices spent in steps that were repeated after a kill."""
    return sum((session.usage_by_purpose.get(Purpose.REPEATED, Usage()) for session in sessions), Usage())
