"""Whole runs of adapters: trained, tested, scored, and what is left on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices import derive_seed
from ..training.checkpoint import load_state, save_state
from .adapted import AdaptedModel, adapt, undisturbed_random_state
from .data import Data, load_data, training_batches
from .folder import AdapterFolder
from .models import TINY, Objective, load_model, positions
from .proxies import Batch, default_loss, on_device_of
from .reallocation import Choice, Reallocation
from .scoring import Scores, score
from .settings import AdapterRun
from .sources import COLLECTIONS
from .tokens import load_tokens

__all__ = ["evaluate_run", "score_run", "train_run"]

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Parts:
    adapted: AdaptedModel
    data: Data


def train_run(
    config: AdapterRun,
    folder: AdapterFolder,
    *,
    resume: bool = False,
    listener: Callable[[Record], None] | None = None,
) -> dict[str, Any]:
    """Train adapters, and leave config.toml, metrics.jsonl, summary.json and the adapters in a folder.

    With ``dynamic``, history.jsonl and frequency.toml tell which adapters were on when, and how often.

    Args:
        config: the run.
        folder: new.
        resume: the folder holds a run of this configuration that broke off; go on from its last checkpoint, to the same
            adapters that it would have had.
        listener: told every record as it is made.

    Returns:
        The summary.

    Raises:
        ConfigurationError: the configuration cannot be run; nothing is left behind.
    """
    if not resume:
        folder.check_free()
    state = load_state(folder.path / "checkpoint") if resume else None
    parts = _prepare(config)
    digest = parts.data.digest()
    if state is not None and state["data"] != digest:
        raise ConfigurationError(f"the data are not those that the run in {folder.path} was begun with; begin another")
    metrics: list[Record] = []

    def tell(record: Record) -> None:
        metrics.append(record)
        folder.append(record)
        if listener is not None:
            listener(record)

    reallocation = None if config.dynamic is None else _reallocation(config, parts, tell)
    trainer = _trainer(config, parts, folder.path, tell, reallocation)
    start = time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - start + (0.0 if state is None else float(state["seconds"]))

    def keep(standing: Record | None) -> None:
        kept = {"trainer": standing, "data": digest, "records": len(metrics), "seconds": seconds()}
        save_state(folder.path / "checkpoint", {**kept, **_standing(parts, reallocation)})

    def restore(state: Record) -> None:
        parts.adapted.load_trained_state(state["adapters"])
        parts.adapted.set_enabled(state["enabled"])
        if reallocation is not None:
            reallocation.load_state_dict(state["reallocation"])

    trainer.keep = keep
    # Only now: what is refused above leaves nothing behind.
    if resume:
        metrics += folder.rewind(0 if state is None else state["records"])
    else:
        folder.begin(config)
    with undisturbed_random_state(derive_seed(config.seed, "trainer")):
        if state is None:
            trainer.train()
        elif state["trainer"] is not None:
            trainer.go_on(state["trainer"], partial(restore, state))
        else:  # it broke off behind its last step
            restore(state)
    keep(None)
    if reallocation is not None:
        reallocation.save(folder.path)
    summary = _summary(config, parts, metrics, seconds(), reallocation)
    # Last: a run with a summary is complete.
    folder.write_summary(summary)
    return summary


def evaluate_run(folder: AdapterFolder, data: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Test the adapters of a finished run, on its own test set or on other data.

    Args:
        folder: of the run.
        data: keys of the data section in place of the run's own.

    Returns:
        ``test_loss``, and ``test_accuracy`` or ``test_pearson`` of a classifier.

    Raises:
        ConfigurationError: the folder holds no finished run, or the data cannot be read.
    """
    config = folder.config()
    if data:
        config = AdapterRun.load(None, {**_plain(config), "data": {**_plain(config)["data"], **data}})
    parts = _restored(config, folder)
    trainer = _trainer(config, parts, folder.path, None, None)
    with undisturbed_random_state(derive_seed(config.seed, "test")):
        found = trainer.evaluate()
    return {
        name.replace("eval_", "test_"): value
        for name, value in found.items()
        if name in ("eval_loss", "eval_accuracy", "eval_pearson")
    }


def score_run(config: AdapterRun, *, warmup_steps: int = 0, folder: AdapterFolder | None = None) -> Scores:
    """Score the adapters of a configuration, fresh, after some steps of training, or as a run has left them.

    Args:
        config: the run; its ``scoring`` says how.
        warmup_steps: with all adapters on, before they are scored.
        folder: of a finished run whose adapters are scored.

    Raises:
        ConfigurationError: the configuration cannot be run, or the folder holds no finished run.
    """
    parts = _prepare(config) if folder is None else _restored(config, folder)
    if warmup_steps:
        _warm_up(config, parts, warmup_steps)
    batches = training_batches(parts.data, config.training.batch_size, seed=derive_seed(config.seed, "scoring"))
    options = config.scoring
    return score(
        parts.adapted,
        batches,
        options.proxy,
        count=options.batches,
        perturb=options.perturb,
        tolerance=options.tolerance,
        metric=_metric(parts, config) if options.proxy == "alpha_test" else None,
        seed=config.seed,
    )


def _prepare(config: AdapterRun) -> _Parts:
    require("transformers", "'astralora adapters'", extra="lowrank")
    tiny = config.model.name in TINY
    tokens = load_tokens(config.model.tokenizer or ("bytes" if tiny else config.model.name))
    data = load_data(config.data, tokens, _objective(config), seed=config.seed)
    model = load_model(
        config.model.name, data.objective, labels=data.labels, options=dict(config.model.options), seed=config.seed
    )
    size = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if size < tokens.size:
        raise ConfigurationError(f"the model has {size} tokens and its tokenizer {tokens.size}; choose one that fits")
    room = positions(model)
    if room is not None and config.data.length > room:
        raise ConfigurationError(f"the model takes {room} tokens at most; data.length is {config.data.length}")
    if data.objective == "classification":
        model.config.pad_token_id = data.pad  # type: ignore[union-attr]
    return _Parts(adapt(model, config.adapters, seed=config.seed), data)


def _objective(config: AdapterRun) -> Objective:
    if config.objective != "auto":
        return config.objective
    collection = COLLECTIONS.get(config.data.name or "")
    if config.data.label is not None or (config.data.train is None and collection and collection.label):
        return "classification"
    return "masked" if "bert" in Path(config.model.name).name.lower() else "causal"


def _restored(config: AdapterRun, folder: AdapterFolder) -> _Parts:
    state = load_state(folder.path / "checkpoint") if folder.summary() is not None else None
    if state is None:
        raise ConfigurationError(f"the run in {folder.path} has not ended: it has no adapters to go by")
    parts = _prepare(config)
    parts.adapted.load_trained_state(state["adapters"])
    parts.adapted.set_enabled(state["enabled"])
    return parts


def _reallocation(config: AdapterRun, parts: _Parts, tell: Callable[[Record], None]) -> Reallocation:
    dynamic, scoring = config.dynamic, config.scoring
    assert dynamic is not None
    per_epoch = ceil(len(parts.data.train) / config.training.batch_size)

    def told(choice: Choice) -> None:
        tell({"event": "reallocation", "step": choice.step, "enabled": choice.enabled})

    return Reallocation(
        parts.adapted,
        training_batches(parts.data, config.training.batch_size, seed=derive_seed(config.seed, "scoring")),
        interval=max(round(dynamic.realloc_n * per_epoch), 1),
        turn_on=dynamic.turn_on,
        proxy=scoring.proxy,
        count=scoring.batches,
        groups=dynamic.groups,
        warmup_steps=dynamic.warmup_steps,
        reuse=dynamic.reuse,
        perturb=scoring.perturb,
        seed=config.seed,
        listener=told,
    )


def _trainer(
    config: AdapterRun,
    parts: _Parts,
    folder: Path,
    tell: Callable[[Record], None] | None,
    reallocation: Reallocation | None,
) -> Any:
    from .trainer import make_trainer

    with undisturbed_random_state(derive_seed(config.seed, "trainer")):
        return make_trainer(config, parts.adapted.model, parts.data, str(folder), tell=tell, reallocation=reallocation)


def _warm_up(config: AdapterRun, parts: _Parts, steps: int) -> None:
    model = parts.adapted.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.training.learning_rate, weight_decay=config.training.weight_decay)
    batches = training_batches(parts.data, config.training.batch_size, seed=derive_seed(config.seed, "warm-up"))
    model.train()
    with undisturbed_random_state(derive_seed(config.seed, "warm-up")):
        for _, batch in zip(range(steps), batches, strict=False):
            optimizer.zero_grad()
            default_loss(model, batch).backward()
            optimizer.step()
    optimizer.zero_grad()


def _metric(parts: _Parts, config: AdapterRun) -> Callable[[nn.Module], float] | None:
    """Accuracy of a classifier on as many training batches as there are for scoring; None for what else has a loss."""
    if parts.data.objective != "classification" or parts.data.labels == 1:
        return None
    stream = training_batches(parts.data, config.training.batch_size, seed=derive_seed(config.seed, "scoring"))
    batches: list[Batch] = [batch for _, batch in zip(range(config.scoring.batches), stream, strict=False)]

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        right = []
        for batch in batches:
            moved = on_device_of(model, batch)
            right.append((model(**moved).logits.argmax(dim=-1) == moved["labels"]).float())
        return float(torch.cat(right).mean())

    return accuracy


def _standing(parts: _Parts, reallocation: Reallocation | None) -> dict[str, Any]:
    return {
        "adapters": parts.adapted.trained_state(),
        "enabled": {unit.key: unit.enabled for unit in parts.adapted.units},
        "reallocation": None if reallocation is None else reallocation.state_dict(),
    }


def _summary(
    config: AdapterRun,
    parts: _Parts,
    metrics: list[Record],
    seconds: float,
    reallocation: Reallocation | None,
) -> dict[str, Any]:
    trained, total = parts.adapted.parameter_counts()
    epochs = [record for record in metrics if record["event"] == "epoch"]
    steps = [record for record in metrics if record["event"] == "step"]
    last: Record = epochs[-1] if epochs else {}
    scores = {name: value for name, value in last.items() if name.startswith("test_")}
    return {
        "task": config.data.train or config.data.name,
        "objective": parts.data.objective,
        "model": config.model.name,
        "method": "uniform" if reallocation is None else "dynamic",
        "proxy": None if reallocation is None else config.scoring.proxy,
        "seed": config.seed,
        "epochs": config.training.epochs,
        "steps": steps[-1]["step"] if steps else 0,
        **scores,
        "best_test_loss": min((record["test_loss"] for record in epochs), default=None),
        "adapters": len(parts.adapted.units),
        "adapters_on": sum(unit.enabled for unit in parts.adapted.units),
        "reallocations": 0 if reallocation is None else len(reallocation.history),
        "trained_parameters": trained,
        "parameters": total,
        "wall_seconds": seconds,
    }


def _plain(config: AdapterRun) -> dict[str, Any]:
    return {**config.model_dump(exclude_none=True), "adapters": config.adapters.to_tables()}
