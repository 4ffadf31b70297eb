"""A whole run: baseline, device, checkpoints, and what is left on disk."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from types import FrameType
from typing import Any

from ..common.errors import ConfigurationError
from ..devices import BudgetExceeded, Session, Usage
from ..devices.files import write_atomically
from ..devices.safety import stop_on_signals
from ..nn.health import StaleGradientWarning
from ..nn.methods import ExpensiveGradientWarning, expected_expense
from ..reports import RunData, run_report
from ..surrogates.twin_drift import StaleCalibrationWarning
from .config import RunConfig
from .fit import Fit, Record
from .folder import RunFolder
from .plan import check_run, usage_by_purpose
from .setup import attach_devices, make_devices, make_task
from .tracking import Tracker

__all__ = ["Interrupted", "recall_run", "train"]

# Between the ends of epochs, which may be hours apart on hardware.
_CHECKPOINT_SECONDS = 300.0


class Interrupted(Exception):
    """The run was asked to stop, and did after a whole step; everything is saved.

    Args:
        step: the last step that was made.
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
    """Run the training that a folder's configuration describes, and leave metrics, report and summary there.

    Args:
        folder: new, or of an interrupted run.
        resume: go on from the folder's checkpoint.
        report: draw the pictures and the page, which takes longer than a small run of many.
        listener: told every record as it is made, after one of the event "start" with the number of steps.

    Returns:
        Summary, metrics, and the controls before and after.

    Raises:
        Interrupted: by SIGINT or SIGTERM; can be resumed.
        DeviceError, ConfigurationError: the configuration cannot be run, or the device failed.
    """
    config = folder.config
    task = make_task(config)
    devices = make_devices(config, task)
    splits = task.splits()
    if not resume:
        folder.check_free()
        check_run(config, task, splits, devices)
        folder.begin()
    state = folder.load() if resume else None
    if resume and state is None and any(record["event"] != "baseline" for record in folder.metrics()):
        raise ConfigurationError(f"{folder.path} has metrics but no checkpoint to go on from; begin a new run")
    folder.rewind(state["fit"]["step"] if state else None)

    def tell(record: Record) -> None:
        folder.append(record)
        if listener is not None:
            listener(record)

    if listener is not None:
        listener({"event": "start", "steps": config.epochs * ceil(len(splits.train_inputs) / config.batch_size)})
    with _stoppable() as stop_asked, warnings.catch_warnings():
        # The report says it, with the number.
        for said in (StaleGradientWarning, StaleCalibrationWarning, ExpensiveGradientWarning):
            warnings.simplefilter("ignore", said)
        baseline: float | None = None
        if state is not None:
            baseline = state["baseline"]
        elif config.baseline:
            baseline = _baseline(Fit(config, task, splits, task.model(config.seed)), tell, stop_asked)
        with ExitStack() as stack:
            tracker = stack.enter_context(Tracker(folder.path))
            sessions = {
                name: stack.enter_context(Session(device, config.budget, config.retry))
                for name, device in devices.items()
            }
            fit = Fit(config, task, splits, attach_devices(config, task, sessions))
            before = [layer.controls.detach().clone() for layer in fit.layers]
            continuous = True
            if state is not None:
                before = state["controls_before"]
                fit.load_state_dict(state["fit"])
                restored = [session.load_state_dict(state["sessions"][name]) for name, session in sessions.items()]
                continuous = all(restored) and state["continuous"]

            def save() -> None:
                folder.save(
                    {
                        "fit": fit.state_dict(),
                        "sessions": {name: session.state_dict() for name, session in sessions.items()},
                        "baseline": baseline,
                        "controls_before": before,
                        "continuous": continuous,
                    }
                )

            save()
            stopped = _run(fit, tell, tracker, save, stop_asked)
            metrics = folder.metrics()
            summary = _summary(config, list(sessions.values()), fit, metrics, baseline, continuous, stopped)
    after = [layer.controls.detach().clone() for layer in fit.layers]
    result = RunData(summary, metrics, before, after, fit.layers[0].session.spec.control_unit)
    for name, content in run_report(result, config.to_toml()).items() if report else ():
        write_atomically(folder.path / name, content)
    # Last: a run with a summary is complete.
    folder.write_summary(summary)
    return result


def recall_run(folder: RunFolder) -> RunData:
    """A finished run as it was when it ended, for its report.

    Raises:
        ConfigurationError: it has not ended.
    """
    summary, state = folder.summary(), folder.load()
    if summary is None or state is None:
        raise ConfigurationError(f"the run in {folder.path} has not ended; go on with it by --resume '{folder.path}'")
    model = state["fit"]["model"]
    after = [value for name, value in model.items() if name.rpartition(".")[2] == "controls"]
    device, *_ = make_devices(folder.config, make_task(folder.config)).values()
    return RunData(summary, folder.metrics(), state["controls_before"], after, device.spec.control_unit)


def _run(
    fit: Fit,
    tell: Callable[[Record], None],
    tracker: Tracker,
    save: Callable[[], None],
    stop_asked: threading.Event,
) -> str | None:
    saved = time.monotonic()
    try:
        for record in fit.run():
            tell(record)
            tracker.write(record)
            ends_epoch = record["step"] % fit.steps_per_epoch == 0
            if record["event"] == "step" and ends_epoch:
                continue  # its epoch's record follows, and belongs to the same state
            stop = stop_asked.is_set() and fit.step < fit.total_steps
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
    tell: Callable[[Record], None],
    stop_asked: threading.Event,
) -> float:
    accuracy = 0.0
    for record in fit.run():
        if record["event"] == "epoch":
            accuracy = record["test_accuracy"]
            tell({**record, "event": "baseline"})
        if stop_asked.is_set():
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
    """An event that SIGINT and SIGTERM set; the second one stops at once, as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # The second signal has to leave the chips safe as well.
    stop_on_signals()
    signals = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        for each in signals:
            signal.signal(each, earlier[each])

    for number in signals:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number in signals:
            signal.signal(number, earlier[number])
