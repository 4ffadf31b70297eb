"""Train, test and score adapters by a configuration, and write the results into a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..common.errors import ConfigurationError
from ..devices import derive_seed
from .data import training_batches
from .folder import AdapterFolder
from .preparation import PreparedRun, prepare, prepare_from_folder
from .proxies import Batch, default_loss, move_to_device_of
from .random_state import isolated_random_state
from .reallocation import Choice, Reallocation
from .run_config import AdapterRun
from .scoring import Scores, score

if TYPE_CHECKING:
    from .trainer import AdapterTrainer

__all__ = ["evaluate_run", "score_run", "train_run"]

Record = dict[str, Any]


def train_run(
    config: AdapterRun,
    folder: AdapterFolder,
    *,
    resume: bool = False,
    listener: Callable[[Record], None] | None = None,
) -> dict[str, Any]:
    """Train adapters, and write config.toml, metrics.jsonl, summary.json and the adapters into a folder.

    With ``dynamic``, history.jsonl and frequency.toml record which adapters were on at which step, and how often.

    Args:
        config: configuration of the run.
        folder: new folder.
        resume: continue the interrupted run in the folder from its last checkpoint; the resulting adapters are the same
            as without the interruption.
        listener: function called with every record.

    Returns:
        The summary.

    Raises:
        ConfigurationError: the configuration cannot be run, or the folder cannot be used; nothing was changed.
    """
    if resume:
        folder.hold()
    else:
        folder.check_free()
    try:
        finished = folder.summary() if resume else None
        return finished or _train(config, folder, folder.load_state(config) if resume else None, resume, listener)
    finally:
        folder.release()


def _train(
    config: AdapterRun,
    folder: AdapterFolder,
    state: Record | None,
    resume: bool,
    listener: Callable[[Record], None] | None,
) -> dict[str, Any]:
    """Train from the start or from a checkpoint, and return the summary."""
    prepared = prepare(config)
    log = _RunLog(config, folder, prepared, state, listener)
    if state is not None and state["data"] != log.digest:
        raise ConfigurationError(f"the data have changed since the run in {folder.path} began; begin another run")
    if config.dynamic is not None:
        log.reallocation = _make_reallocation(config, prepared, log.record)
    trainer = _make_trainer(config, prepared, folder.path, log.record, log.reallocation)
    trainer.on_checkpoint = log.save_checkpoint
    # All checks come before the first file is written.
    log.begin(resume=resume)
    with isolated_random_state(derive_seed(config.seed, "trainer")):
        if state is None:
            trainer.train()
        elif state["trainer"] is not None:
            trainer.resume(state["trainer"], partial(log.restore, state))
        else:  # the interruption came after the last step
            log.restore(state)
    log.save_checkpoint(None)
    if log.reallocation is not None:
        with folder.writes("history.jsonl"):
            log.reallocation.save(folder.path)
    summary = {**_summary(config, prepared, log), "damaged_lines": folder.metrics().damaged_lines}
    # The summary is written last, since it marks a complete run.
    folder.write_summary(summary)
    return summary


class _RunLog:
    """Write the records and the checkpoints of a run, and restore a checkpoint.

    Args:
        folder: folder of the run.
        prepared: adapted model and data.
        state: checkpoint from which the run continues, if any.
        listener: function called with every record.

    Attributes:
        digest: hash of the data.
        results: latest step, results of the latest test, and smallest loss of all tests. They come from the checkpoint
            and not from metrics.jsonl, whose lines may be damaged.
        reallocation: reallocation of a dynamic run.
    """

    def __init__(
        self,
        config: AdapterRun,
        folder: AdapterFolder,
        prepared: PreparedRun,
        state: Record | None,
        listener: Callable[[Record], None] | None,
    ) -> None:
        self._config, self._folder, self._prepared = config, folder, prepared
        self._state, self._listener = state, listener
        self.digest = prepared.data.digest()
        self.results: Record = {"step": 0, "test": {}, "best_test_loss": None} if state is None else state["results"]
        self.reallocation: Reallocation | None = None
        self._start = time.perf_counter()

    def begin(self, *, resume: bool) -> None:
        """Make the folder of a new run, or drop the records after the checkpoint of a resumed one."""
        self._start = time.perf_counter()
        if resume:
            self._folder.rewind(0 if self._state is None else self._state["lines"])
        else:
            self._folder.begin(self._config)

    def record(self, record: Record) -> None:
        """Append a record to metrics.jsonl, include it in the results, and call the listener."""
        results = self.results
        if record["event"] == "step":
            results["step"] = record["step"]
        elif record["event"] == "epoch":
            results["test"] = {name: value for name, value in record.items() if name.startswith("test_")}
            losses = [loss for loss in (results["best_test_loss"], record["test_loss"]) if loss is not None]
            results["best_test_loss"] = min(losses)
        self._folder.append(record)
        if self._listener is not None:
            self._listener(record)

    def seconds(self) -> float:
        """Return the training time in seconds, including the time before the checkpoint."""
        before = 0.0 if self._state is None else float(self._state["seconds"])
        return time.perf_counter() - self._start + before

    def save_checkpoint(self, trainer_state: Record | None) -> None:
        """Write a checkpoint: the state of the trainer (None after the last step), and all other state of the run."""
        adapted, reallocation = self._prepared.adapted, self.reallocation
        state = {
            "trainer": trainer_state,
            "data": self.digest,
            "results": self.results,
            "seconds": self.seconds(),
            "adapters": adapted.trained_state(),
            "enabled": {unit.key: unit.enabled for unit in adapted.units},
            "reallocation": None if reallocation is None else reallocation.state_dict(),
        }
        self._folder.save_state(state, self._config)

    def restore(self, state: Record) -> None:
        """Restore the adapters, their switches and the reallocation from a checkpoint."""
        self._prepared.adapted.load_trained_state(state["adapters"])
        self._prepared.adapted.set_enabled(state["enabled"])
        if self.reallocation is not None:
            self.reallocation.load_state_dict(state["reallocation"])


def evaluate_run(folder: AdapterFolder, data: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Test the adapters of a finished run, on the run's test set or on other data.

    Args:
        folder: folder of the run.
        data: keys of the data section that replace those of the run.

    Returns:
        ``test_loss``, and ``test_accuracy`` or ``test_pearson`` of a classifier.

    Raises:
        ConfigurationError: the folder holds no finished run, or the data cannot be read.
    """
    config = folder.config()
    if data:
        tables = {**config.model_dump(exclude_none=True), "adapters": config.adapters.to_tables()}
        config = AdapterRun.load(None, {**tables, "data": {**tables["data"], **data}})
    prepared = prepare_from_folder(config, folder)
    trainer = _make_trainer(config, prepared, folder.path, None, None)
    with isolated_random_state(derive_seed(config.seed, "test")):
        return trainer.test()


def score_run(config: AdapterRun, *, warmup_steps: int = 0, folder: AdapterFolder | None = None) -> Scores:
    """Score new adapters, adapters after some steps of training, or the adapters of a finished run.

    Args:
        config: configuration of the run; ``scoring`` has the options of the scoring.
        warmup_steps: number of training steps with all adapters on before they are scored.
        folder: folder of a finished run whose adapters are scored; new adapters unless given.

    Raises:
        ConfigurationError: the configuration cannot be run, or the folder holds no finished run.
    """
    prepared = prepare(config) if folder is None else prepare_from_folder(config, folder)
    if warmup_steps:
        _warm_up(config, prepared, warmup_steps)
    batches = training_batches(prepared.data, config.training.batch_size, seed=derive_seed(config.seed, "scoring"))
    options = config.scoring
    return score(
        prepared.adapted,
        batches,
        options.proxy,
        count=options.batches,
        perturb=options.perturb,
        tolerance=options.tolerance,
        metric=_accuracy_metric(prepared, config) if options.proxy == "alpha_test" else None,
        seed=config.seed,
    )


def _make_reallocation(config: AdapterRun, prepared: PreparedRun, record: Callable[[Record], None]) -> Reallocation:
    dynamic, scoring = config.dynamic, config.scoring
    assert dynamic is not None
    per_epoch = ceil(len(prepared.data.train) / config.training.batch_size)

    def record_choice(choice: Choice) -> None:
        record({"event": "reallocation", "step": choice.step, "enabled": choice.enabled})

    return Reallocation(
        prepared.adapted,
        training_batches(prepared.data, config.training.batch_size, seed=derive_seed(config.seed, "scoring")),
        interval=max(round(dynamic.realloc_n * per_epoch), 1),
        turn_on=dynamic.turn_on,
        proxy=scoring.proxy,
        count=scoring.batches,
        groups=dynamic.groups,
        warmup_steps=dynamic.warmup_steps,
        reuse=dynamic.reuse,
        perturb=scoring.perturb,
        seed=config.seed,
        listener=record_choice,
    )


def _make_trainer(
    config: AdapterRun,
    prepared: PreparedRun,
    folder: Path,
    record: Callable[[Record], None] | None,
    reallocation: Reallocation | None,
) -> AdapterTrainer:
    from .trainer import make_trainer

    model, data = prepared.adapted.model, prepared.data
    with isolated_random_state(derive_seed(config.seed, "trainer")):
        return make_trainer(config, model, data, str(folder), record=record, reallocation=reallocation)


def _warm_up(config: AdapterRun, prepared: PreparedRun, steps: int) -> None:
    model = prepared.adapted.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.training.learning_rate, weight_decay=config.training.weight_decay)
    batches = training_batches(prepared.data, config.training.batch_size, seed=derive_seed(config.seed, "warm-up"))
    model.train()
    with isolated_random_state(derive_seed(config.seed, "warm-up")):
        for _, batch in zip(range(steps), batches, strict=False):
            optimizer.zero_grad()
            default_loss(model, batch).backward()
            optimizer.step()
    optimizer.zero_grad()


def _accuracy_metric(prepared: PreparedRun, config: AdapterRun) -> Callable[[nn.Module], float] | None:
    """Return a function that measures a classifier's accuracy on the scoring batches, or None without classes."""
    if prepared.data.objective != "classification" or prepared.data.labels == 1:
        return None
    stream = training_batches(prepared.data, config.training.batch_size, seed=derive_seed(config.seed, "scoring"))
    batches: list[Batch] = [batch for _, batch in zip(range(config.scoring.batches), stream, strict=False)]

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        correct = []
        for batch in batches:
            inputs = move_to_device_of(model, batch)
            correct.append((model(**inputs).logits.argmax(dim=-1) == inputs["labels"]).float())
        return float(torch.cat(correct).mean())

    return accuracy


def _summary(config: AdapterRun, prepared: PreparedRun, log: _RunLog) -> dict[str, Any]:
    trained, total = prepared.adapted.parameter_counts()
    reallocation = log.reallocation
    return {
        "task": config.data.train or config.data.name,
        "objective": prepared.data.objective,
        "model": config.model.name,
        "method": "uniform" if reallocation is None else "dynamic",
        "proxy": None if reallocation is None else config.scoring.proxy,
        "seed": config.seed,
        "epochs": config.training.epochs,
        "steps": log.results["step"],
        **log.results["test"],
        "best_test_loss": log.results["best_test_loss"],
        "adapters": len(prepared.adapted.units),
        "adapters_on": sum(unit.enabled for unit in prepared.adapted.units),
        "reallocations": 0 if reallocation is None else len(reallocation.history),
        "trained_parameters": trained,
        "parameters": total,
        "wall_seconds": log.seconds(),
    }
