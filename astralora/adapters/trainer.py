"""Extend the Trainer of transformers for adapters that are switched on and off, and for checkpoints of astralora.

Import this module only if transformers is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from .data import Data, Example, collate
from .random_state import restore_random_state
from .reallocation import Reallocation
from .run_config import AdapterRun
from .trainer_state import restore_trainer, train_from, trainer_state

__all__ = ["AdapterTrainer", "make_trainer"]

Record = dict[str, Any]


class AdapterTrainer(Trainer):
    """Train also while every adapter is off, and save and load checkpoints by functions of the caller.

    Attributes:
        on_checkpoint: function called with the state of the trainer at every checkpoint.
    """

    on_checkpoint: Callable[[Record], None] | None = None
    _saved_state: Mapping[str, Any] | None = None
    _restore_model: Callable[[], None] | None = None

    def resume(self, state: Mapping[str, Any], restore_model: Callable[[], None]) -> None:
        """Continue the training of another trainer.

        Args:
            state: state of that trainer, as ``on_checkpoint`` received it.
            restore_model: function that restores the model; called after the optimizer has collected its parameters.
        """
        self._saved_state, self._restore_model = state, restore_model
        train_from(self, state)

    def test(self) -> dict[str, float]:
        """Evaluate the model on the test examples: ``test_loss``, and ``test_accuracy`` or ``test_pearson``."""
        return _test_metrics(self.evaluate())

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss like `Trainer.compute_loss`, so that backward also works if no parameter is trained."""
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if torch.is_grad_enabled() and not loss.requires_grad:
            loss.requires_grad_()
        return result

    # The methods below replace methods in which a Trainer writes and reads pickled files.

    def _save_checkpoint(self, *_: Any, **__: Any) -> None:
        if self.on_checkpoint is not None:
            self.on_checkpoint(trainer_state(self))

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        pass

    def _load_optimizer_and_scheduler(self, *_: Any, **__: Any) -> None:
        if self._saved_state is not None and self._restore_model is not None:
            restore_trainer(self, self._saved_state)
            self._restore_model()

    def _load_rng_state(self, *_: Any, **__: Any) -> None:
        if self._saved_state is not None:
            restore_random_state(self._saved_state["random"])


# The Trainer calls every method of a callback with its arguments, its state and its control.


class _CheckpointCallback(TrainerCallback):
    def __init__(self, interval: int, steps_per_epoch: int) -> None:
        self._interval, self._steps_per_epoch = interval, steps_per_epoch

    def on_step_end(self, *event: Any, **_: Any) -> None:
        _, state, control = event
        # The last step of an epoch is saved in on_epoch_end, after the test.
        if state.global_step % self._interval == 0 and state.global_step % self._steps_per_epoch:
            control.should_save = True

    def on_epoch_end(self, *event: Any, **_: Any) -> None:
        _, state, control = event
        if state.global_step % self._steps_per_epoch == 0:
            control.should_save = True


class _ReallocationCallback(TrainerCallback):
    def __init__(self, reallocation: Reallocation) -> None:
        self._reallocation = reallocation

    def on_step_begin(self, *event: Any, **_: Any) -> None:
        _, state, _ = event
        self._reallocation.before_step(state.global_step)

    def on_pre_optimizer_step(self, *event: Any, **_: Any) -> None:
        _, state, _ = event
        self._reallocation.after_backward(state.global_step)


class _RecordCallback(TrainerCallback):
    def __init__(self, record: Callable[[Record], None]) -> None:
        self._record = record

    def on_log(self, *event: Any, logs: Any = None, **_: Any) -> None:
        _, state, _ = event
        if logs and "loss" in logs:
            values = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            self._record({"event": "step", "step": state.global_step, "epoch": state.epoch, **values})

    def on_evaluate(self, *event: Any, metrics: Any = None, **_: Any) -> None:
        _, state, _ = event
        values = _test_metrics(metrics or {})
        self._record({"event": "epoch", "step": state.global_step, "epoch": state.epoch, **values})


def make_trainer(
    config: AdapterRun,
    model: nn.Module,
    data: Data,
    folder: str,
    *,
    record: Callable[[Record], None] | None = None,
    reallocation: Reallocation | None = None,
) -> AdapterTrainer:
    """Make a trainer for the trainable parameters of a model.

    Args:
        config: configuration of the run.
        model: adapted model.
        data: training and test examples.
        folder: output folder of the trainer, into which it writes no file.
        record: function called with every record.
        reallocation: choice of adapters during training.
    """
    callbacks: list[TrainerCallback] = []
    if record is not None:
        callbacks.append(_RecordCallback(record))
    if reallocation is not None:
        callbacks.append(_ReallocationCallback(reallocation))
    steps_per_epoch = ceil(len(data.train) / config.training.batch_size)
    callbacks.append(_CheckpointCallback(config.training.checkpoint_steps, steps_per_epoch))

    def collate_examples(examples: list[Example]) -> dict[str, Tensor]:
        return collate(examples, data.pad)

    trainer = AdapterTrainer(
        model=model,
        args=_training_arguments(config, folder),
        data_collator=collate_examples,
        train_dataset=data.train,
        eval_dataset=data.test,
        compute_metrics=_classifier_metrics(data.labels) if data.objective == "classification" else None,
        callbacks=callbacks,
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    return trainer


def _training_arguments(config: AdapterRun, folder: str) -> TrainingArguments:
    options = config.training
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=max(options.batch_size, 32),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type="cosine",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )


def _test_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name.replace("eval_", "test_"): value
        for name, value in metrics.items()
        if name in ("eval_loss", "eval_accuracy", "eval_pearson")
    }


def _classifier_metrics(labels: int) -> Callable[[Any], dict[str, float]]:
    """Return a function that computes accuracy, or the Pearson correlation for a label that is a number."""

    def compute(prediction: Any) -> dict[str, float]:
        predictions = prediction.predictions
        outputs = torch.as_tensor(predictions[0] if isinstance(predictions, tuple) else predictions)
        targets = torch.as_tensor(prediction.label_ids)
        if labels == 1:
            pair = torch.stack([outputs.flatten(), targets.flatten().to(outputs)])
            return {"pearson": float(torch.corrcoef(pair)[0, 1])}
        return {"accuracy": float((outputs.argmax(dim=-1) == targets).float().mean())}

    return compute
