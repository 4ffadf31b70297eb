"""Collect the results of a run, and make its summary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..devices import Session, Usage
from ..nn.methods import expected_expense
from .config import RunConfig
from .fit import Fit, Record
from .plan import usage_by_purpose
from .spending import repeated_usage

__all__ = ["Results", "make_summary"]


@dataclass(slots=True)
class Results:
    """Hold the results of the epochs so far.

    Checkpoints contain them, so that a damaged line of metrics.jsonl does not change the summary.

    Attributes:
        epochs: number of complete epochs.
        test_accuracy: accuracy after the latest epoch.
        best_test_accuracy: highest accuracy after any epoch.
    """

    epochs: int = 0
    test_accuracy: float | None = None
    best_test_accuracy: float | None = None

    def add(self, record: Record) -> None:
        """Include the record of an epoch; ignore other records."""
        if record["event"] == "epoch":
            accuracy = record["test_accuracy"]
            self.epochs += 1
            self.test_accuracy = accuracy
            self.best_test_accuracy = (
                accuracy if self.best_test_accuracy is None else max(self.best_test_accuracy, accuracy)
            )


def make_summary(
    config: RunConfig,
    sessions: Mapping[str, Session],
    fit: Fit,
    results: Results,
    fixed: Mapping[str, Any],
    stopped: str | None,
    damaged_lines: int,
) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        config: configuration of the run.
        sessions: session of each device layer, by its name.
        fit: training loop.
        results: results of the epochs.
        fixed: test accuracy of the digital baseline as "baseline"; as "continuous", whether the inner state of every
            device was restored whenever the run was resumed.
        stopped: reason for which the run ended early.
        damaged_lines: number of damaged or missing lines of metrics.jsonl.
    """
    return {
        "task": config.task,
        "device": config.device.name,
        "impairments": config.device.impairments,
        "method": config.method.name,
        **_describe_gradients(config, fit),
        "calibration": config.device.calibration,
        "seed": config.seed,
        "epochs": results.epochs,
        "steps": fit.step,
        "test_accuracy": results.test_accuracy,
        "best_test_accuracy": results.best_test_accuracy,
        "baseline_test_accuracy": fixed["baseline"],
        **_describe_spending(sessions.values(), fit.step),
        "wall_seconds": fit.wall_seconds,
        "device_state": "continuous" if fixed["continuous"] else "reopened",
        "serial_number": ", ".join(session.spec.serial_number or "unknown" for session in sessions.values()),
        "stopped_early": stopped,
        "damaged_lines": damaged_lines,
        "control_unit": fit.layers[0].session.spec.control_unit,
        "devices": {name: _describe(session) for name, session in sessions.items()},
    }


def _describe_gradients(config: RunConfig, fit: Fit) -> dict[str, Any]:
    """Return how gradients were computed, and what the layers report of it."""
    layer = fit.layers[0]
    step = layer.estimator.step_choice
    drifts = [drift for each in fit.layers if (drift := each.surrogate.drift) is not None]
    healths = [each.health for each in fit.layers if each.health is not None]
    return {
        "estimator": type(layer.estimator).__name__.lower(),
        "surrogate": type(layer.surrogate).__name__.lower(),
        "step_size": None if step is None else step.size,
        "step_bound": None if step is None else step.bound,
        "surrogate_health": min(healths, default=None),
        "fit_residual": layer.fit_residual,
        "expense": expected_expense(layer.session.spec, layer.estimator) if config.method.name == "auto" else None,
        "twin_unexplained": max((d.unexplained for d in drifts if d.unexplained is not None), default=None),
        "needs_calibration": any(drift.needs_calibration for drift in drifts),
    }


def _describe_spending(sessions: Collection[Session], steps: int) -> dict[str, Any]:
    """Return the operations of all devices together: all, repeated, and by purpose."""
    by_purpose = usage_by_purpose(sessions)
    usage = sum(by_purpose.values(), Usage())
    repeated = repeated_usage(sessions)
    counted = ("programs", "queries", "vectors", "retries")
    return {
        **{name: getattr(usage, name) for name in counted},
        "programs_per_step": (usage.programs - repeated.programs) / steps if steps else None,
        "hardware_seconds": sum(session.usage.hardware_seconds(session.spec) for session in sessions),
        "repeated": {name: getattr(repeated, name) for name in counted},
        "usage_by_purpose": {
            name: {"programs": part.programs, "queries": part.queries, "vectors": part.vectors}
            for name, part in sorted(by_purpose.items())
        },
    }


def _describe(session: Session) -> dict[str, Any]:
    """Return what a reader of the summary needs to know of a device."""
    spec = session.spec
    names = ("name", "serial_number", "in_features", "out_features", "num_controls", "control_unit")
    return {name: getattr(spec, name) for name in names}
