"""Run a training: baseline, model with devices, checkpoints, and results on disk."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from math import ceil
from types import FrameType
from typing import Any

from ..common.errors import ConfigurationError
from ..devices import BudgetExceeded, Device, Session, Usage
from ..devices.safety import stop_on_signals
from ..nn.health import StaleGradientWarning
from ..nn.methods import ExpensiveGradientWarning
from ..reports import RunData, run_report
from ..surrogates.twin_drift import StaleCalibrationWarning
from ..tasks import Splits, Task
from .fit import Fit, Record
from .folder import RunFolder
from .plan import check_run
from .results import Results, make_summary
from .setup import attach_devices, make_devices, make_task
from .spending import add_repeated, spent_by_device
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
    try:
        if resume:
            folder.hold()
            if folder.summary() is not None:  # another process has completed the run
                return recall_run(folder)
        return _train_and_report(folder, resume, report, listener)
    finally:
        folder.release()


def _train_and_report(
    folder: RunFolder, resume: bool, report: bool, listener: Callable[[Record], None] | None
) -> RunData:
    """Train, and write report and summary."""
    # A resumed run is checked first: it must not reach a chip with a configuration that was changed.
    state = folder.load() if resume else None
    folder.check_inputs()
    task = make_task(folder.config)
    devices = make_devices(folder.config, task)
    splits = task.splits()
    if not resume:
        folder.check_free()
        check_run(folder.config, task, splits, devices)
        folder.begin()

    def report_record(record: Record) -> None:
        folder.append(record)
        if listener is not None:
            listener(record)

    if listener is not None:
        steps = folder.config.epochs * ceil(len(splits.train_inputs) / folder.config.batch_size)
        listener({"event": "start", "steps": steps})
    result = _train(folder, task, splits, devices, state, report_record)
    for name, content in run_report(result, folder.config.to_toml()).items() if report else ():
        folder.write_file(name, content)
    # Written last: a run with a summary is complete.
    folder.write_summary(result.summary)
    return result


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
        else:
            folder.rewind(0)
            if config.baseline:
                baseline = _baseline(Fit(config, task, splits, task.model(config.seed)), report_record, stop)
        tracker = stack.enter_context(Tracker(folder.path))
        sessions = {
            name: stack.enter_context(Session(device, config.budget, config.retry)) for name, device in devices.items()
        }
        saved = None if state is None else _saved_sessions(folder, state)
        if saved is not None:
            _reserve_spent(sessions, saved)
        fit = Fit(config, task, splits, attach_devices(config, task, sessions))
        before = [layer.controls.detach().clone() for layer in fit.layers]
        continuous, results = True, Results()
        if state is not None and saved is not None:
            before, results = state["controls_before"], Results(**state["results"])
            fit.load_state_dict(state["fit"])
            restored = [session.load_state_dict(saved[name]) for name, session in sessions.items()]
            continuous = all(restored) and state["continuous"]
            for session in sessions.values():
                session.budget = config.budget
        fixed = {"baseline": baseline, "controls_before": before, "continuous": continuous}

        def save(lines: int | None = None) -> None:
            states = {name: session.state_dict() for name, session in sessions.items()}
            folder.save({"fit": fit.state_dict(), "sessions": states, "results": asdict(results), **fixed}, lines)

        if state is None:
            save()
        else:
            # First the checkpoint counts what the last lines of metrics.jsonl count, and then these lines are dropped.
            save(state["lines"])
            folder.rewind(state["lines"])
        stopped = _run(fit, folder, results, report_record, tracker, save, stop)
        if stopped is not None:
            save()
        metrics = folder.metrics()
        summary = make_summary(config, sessions, fit, results, fixed, stopped, metrics.damaged_lines)
    after = [layer.controls.detach().clone() for layer in fit.layers]
    return RunData(summary, metrics.records, before, after, summary["control_unit"], metrics.describe_damage())


def _saved_sessions(folder: RunFolder, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of the sessions in a checkpoint, with what was spent after the checkpoint."""
    dropped = folder.metrics(state["lines"]).after(state["lines"])
    return add_repeated(state["sessions"], dropped)


def _reserve_spent(sessions: Mapping[str, Session], saved: Mapping[str, Any]) -> None:
    """Leave each real chip the budget that earlier parts of the run have not spent.

    The counters of a session are restored after the model is attached, which measures the chip. The state of a
    simulated chip is restored as well, so that these measurements do not count.
    """
    for name, session in sessions.items():
        if saved[name]["device"] is None and session.budget is not None:
            spent = sum((Usage(**counters) for counters in saved[name]["usage"].values()), Usage())
            session.budget = session.budget.left_after(spent, session.spec)


def recall_run(folder: RunFolder) -> RunData:
    """Load the results of a finished run for its report.

    Raises:
        ConfigurationError: the run has not ended.
    """
    summary = folder.summary()
    state = None if summary is None else folder.load()
    if summary is None or state is None:
        raise ConfigurationError(f"the run in {folder.path} has not ended; resume it with --resume '{folder.path}'")
    model = state["fit"]["model"]
    after = [value for name, value in model.items() if name.rpartition(".")[2] == "controls"]
    metrics = folder.metrics(state["lines"])
    damage = metrics.describe_damage()
    return RunData(summary, metrics.records, state["controls_before"], after, summary["control_unit"], damage)


def _run(
    fit: Fit,
    folder: RunFolder,
    results: Results,
    report_record: Callable[[Record], None],
    tracker: Tracker,
    save: Callable[[], None],
    stop_requested: threading.Event,
) -> str | None:
    """Train, save checkpoints, and return the reason where the budget ended the run early."""
    saved = time.monotonic()
    try:
        for record in fit.run():
            results.add(record)
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
    except Interrupted:
        raise
    except BaseException:
        # What the broken step spent is known here, and nowhere else.
        with suppress(Exception):
            folder.append({"event": "stopped", "step": fit.step, **spent_by_device(fit.sessions)})
        raise
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
