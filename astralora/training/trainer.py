"""Run a training: baseline, model with devices, checkpoints, and results on disk."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from types import FrameType
from typing import Any

from ..common.errors import ConfigurationError
from ..devices import BudgetExceeded, Device, Session, Usage
from ..devices.files import write_atomically
from ..devices.safety import stop_on_signals
from ..nn.health import StaleGradientWarning
from ..nn.methods import ExpensiveGradientWarning, expected_expense
from ..reports import RunData, run_report
from ..surrogates.twin_drift import StaleCalibrationWarning
from ..tasks import Splits, Task
from .config import RunConfig
from .fit import Fit, Record
from .folder import RunFolder
from .plan import check_run, usage_by_purpose
from .setup import attach_devices, make_devices, make_task
from .tracking import Tracker

__all__ = ["Interrupted", "recall_run", "train"]

# Longest time between checkpoints; an epoch may take hours on hardware.
_CHECKPOINT_SECONDS = 300.0


class Interrupted(Exception):
    """Report that a run was interrupted after a complete step, with its state saved.

    Args:
        step: last complete step.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after step {step}")
        self.step = step


def train(
    folder: RunFolder,
    *,
    resume: bool = False,
    report: bool = True,
    listener: Callable[[Record], None] | None = None,
) -> RunData:
    """Train as a folder's configuration describes, and write metrics, report and summary there.

    Args:
        folder: folder of a new run or of an interrupted one.
        resume: whether to resume from the folder's checkpoint.
        report: whether to draw the plots and the page; for small runs, this takes longer than the training.
        listener: called with every record; the first has the event "start" and the number of steps.

    Returns:
        Summary, metrics, and the controls before and after.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; the run can be resumed.
        DeviceError, ConfigurationError: the configuration cannot be run, or the device failed.
    """
    task = make_task(folder.config)
    devices = make_devices(folder.config, task)
    splits = task.splits()
    state = _prepare(folder, task, splits, devices, resume)

    def report_record(record: Record) -> None:
        folder.append(record)
        if listener is not None:
            listener(record)

    if listener is not None:
        steps = folder.config.epochs * ceil(len(splits.train_inputs) / folder.config.batch_size)
        listener({"event": "start", "steps": steps})
    result = _train(folder, task, splits, devices, state, report_record)
    for name, content in run_report(result, folder.config.to_toml()).items() if report else ():
        write_atomically(folder.path / name, content)
    # Written last: a run with a summary is complete.
    folder.write_summary(result.summary)
    return result


def _prepare(
    folder: RunFolder, task: Task, splits: Splits, devices: Mapping[str, Device], resume: bool
) -> dict[str, Any] | None:
    """Create the folder of a new run, or return the checkpoint of an interrupted one.

    Raises:
        ConfigurationError: the run cannot be started, or not be resumed.
    """
    if not resume:
        folder.check_free()
        check_run(folder.config, task, splits, devices)
        folder.begin()
    state = folder.load() if resume else None
    if resume and state is None and any(record["event"] != "baseline" for record in folder.metrics()):
        raise ConfigurationError(f"{folder.path} has metrics but no checkpoint to resume from; begin a new run")
    folder.rewind(state["fit"]["step"] if state else None)
    return state


def _train(
    folder: RunFolder,
    task: Task,
    splits: Splits,
    devices: Mapping[str, Device],
    state: Mapping[str, Any] | None,
    report_record: Callable[[Record], None],
) -> RunData:
    """Train the baseline and the model with devices, from the start or from a checkpoint."""
    config = folder.config
    with _stoppable() as stop, warnings.catch_warnings(), ExitStack() as stack:
        # The report contains these warnings with their numbers.
        for category in (StaleGradientWarning, StaleCalibrationWarning, ExpensiveGradientWarning):
            warnings.simplefilter("ignore", category)
        baseline: float | None = None
        if state is not None:
            baseline = state["baseline"]
        elif config.baseline:
            baseline = _baseline(Fit(config, task, splits, task.model(config.seed)), report_record, stop)
        tracker = stack.enter_context(Tracker(folder.path))
        sessions = {
            name: stack.enter_context(Session(device, config.budget, config.retry)) for name, device in devices.items()
        }
        fit = Fit(config, task, splits, attach_devices(config, task, sessions))
        before = [layer.controls.detach().clone() for layer in fit.layers]
        continuous = True
        if state is not None:
            before = state["controls_before"]
            fit.load_state_dict(state["fit"])
            restored = [session.load_state_dict(state["sessions"][name]) for name, session in sessions.items()]
            continuous = all(restored) and state["continuous"]
        fixed = {"baseline": baseline, "controls_before": before, "continuous": continuous}

        def save() -> None:
            states = {name: session.state_dict() for name, session in sessions.items()}
            folder.save({"fit": fit.state_dict(), "sessions": states, **fixed})

        save()
        stopped = _run(fit, report_record, tracker, save, stop)
        metrics = folder.metrics()
        summary = _summary(config, list(sessions.values()), fit, metrics, baseline, continuous, stopped)
    after = [layer.controls.detach().clone() for layer in fit.layers]
    return RunData(summary, metrics, before, after, fit.layers[0].session.spec.control_unit)


def recall_run(folder: RunFolder) -> RunData:
    """Load the results of a finished run for its report.

    Raises:
        ConfigurationError: the run has not ended.
    """
    summary, state = folder.summary(), folder.load()
    if summary is None or state is None:
        raise ConfigurationError(f"the run in {folder.path} has not ended; resume it with --resume '{folder.path}'")
    model = state["fit"]["model"]
    after = [value for name, value in model.items() if name.rpartition(".")[2] == "controls"]
    device, *_ = make_devices(folder.config, make_task(folder.config)).values()
    return RunData(summary, folder.metrics(), state["controls_before"], after, device.spec.control_unit)


def _run(
    fit: Fit,
    report_record: Callable[[Record], None],
    tracker: Tracker,
    save: Callable[[], None],
    stop_requested: threading.Event,
) -> str | None:
    """Train, save checkpoints, and return the reason where the budget ended the run early."""
    saved = time.monotonic()
    try:
        for record in fit.run():
            report_record(record)
            tracker.write(record)
            ends_epoch = record["step"] % fit.steps_per_epoch == 0
            if record["event"] == "step" and ends_epoch:
                continue  # the record of the epoch follows, at the same state
            stop = stop_requested.is_set() and fit.step < fit.total_steps
            if stop or ends_epoch or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
            if stop:
                raise Interrupted(fit.step)
    except BudgetExceeded as error:
        return str(error)
    return None


def _baseline(
    fit: Fit,
    report_record: Callable[[Record], None],
    stop_requested: threading.Event,
) -> float:
    """Train the digital baseline, and return its test accuracy."""
    accuracy = 0.0
    for record in fit.run():
        if record["event"] == "epoch":
            accuracy = record["test_accuracy"]
            report_record({**record, "event": "baseline"})
        if stop_requested.is_set():
            raise Interrupted(0)
    return accuracy


def _summary(
    config: RunConfig,
    sessions: Sequence[Session],
    fit: Fit,
    metrics: list[Record],
    baseline: float | None,
    continuous: bool,
    stopped: str | None,
) -> dict[str, Any]:
    """Return the content of summary.json."""
    by_purpose = usage_by_purpose(sessions)
    usage = sum(by_purpose.values(), Usage())
    epochs = [record for record in metrics if record["event"] == "epoch"]
    layer = fit.layers[0]
    step = layer.estimator.step_choice
    drifts = [drift for each in fit.layers if (drift := each.surrogate.drift) is not None]
    healths = [each.health for each in fit.layers if each.health is not None]
    summary: dict[str, Any] = {
        "task": config.task,
        "device": config.device.name,
        "impairments": config.device.impairments,
        "method": config.method.name,
        "estimator": type(layer.estimator).__name__.lower(),
        "surrogate": type(layer.surrogate).__name__.lower(),
        "step_size": None if step is None else step.size,
        "step_bound": None if step is None else step.bound,
        "surrogate_health": min(healths, default=None),
        "fit_residual": layer.fit_residual,
        "expense": expected_expense(layer.session.spec, layer.estimator) if config.method.name == "auto" else None,
        "twin_unexplained": max((d.unexplained for d in drifts if d.unexplained is not None), default=None),
        "needs_calibration": any(drift.needs_calibration for drift in drifts),
        "calibration": config.device.calibration,
        "seed": config.seed,
        "epochs": len(epochs),
        "steps": fit.step,
        "test_accuracy": epochs[-1]["test_accuracy"] if epochs else None,
        "best_test_accuracy": max((r["test_accuracy"] for r in epochs), default=None),
        "baseline_test_accuracy": baseline,
        "programs": usage.programs,
        "queries": usage.queries,
        "vectors": usage.vectors,
        "retries": usage.retries,
        "programs_per_step": usage.programs / fit.step if fit.step else None,
        "hardware_seconds": sum(session.usage.hardware_seconds(session.spec) for session in sessions),
        "wall_seconds": fit.wall_seconds,
        "device_state": "continuous" if continuous else "reopened",
        "serial_number": ", ".join(session.spec.serial_number or "unknown" for session in sessions),
        "stopped_early": stopped,
        "usage_by_purpose": {
            name: {"programs": part.programs, "queries": part.queries, "vectors": part.vectors}
            for name, part in sorted(by_purpose.items())
        },
    }
    return summary


@contextmanager
def _stoppable() -> Generator[threading.Event]:
    """Yield an event that SIGINT or SIGTERM sets; a second signal stops at once."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    # The second signal must leave the chips in their safe state as well.
    stop_on_signals()
    signals = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.getsignal(number) for number in signals}

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        requested.set()
        for each in signals:
            signal.signal(each, earlier[each])

    for number in signals:
        signal.signal(number, request_stop)
    try:
        yield requested
    finally:
        for number in signals:
            signal.signal(number, earlier[number])
