"""The Trainer of transformers, fitted to adapters that take turns and to this project's way of keeping records.

Imported only where transformers is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from .data import Data, Example, collate
from .reallocation import Reallocation
from .settings import AdapterRun
from .standing import restore_random_state, restore_trainer, train_from, trainer_state

__all__ = ["AdapterTrainer", "make_trainer"]

Record = dict[str, Any]


class AdapterTrainer(Trainer):
    """A Trainer that also goes through the motions where every adapter is off, and keeps checkpoints our way.

    Attributes:
        keep: told where it stands, every so often.
    """

    keep: Callable[[Record], None] | None = None
    _earlier: Mapping[str, Any] | None = None
    _restore: Callable[[], None] | None = None

    def go_on(self, state: Mapping[str, Any], restore: Callable[[], None]) -> None:
        """Train from where another one stood.

        Args:
            state: what that one told ``keep``.
            restore: puts the model back, once the optimizer has found out what there is to train.
        """
        self._earlier, self._restore = state, restore
        train_from(self, state)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.compute_loss`."""
        found = super().compute_loss(model, inputs, *args, **kwargs)
        loss: Tensor = found[0] if isinstance(found, tuple) else found
        if torch.is_grad_enabled() and not loss.requires_grad:
            loss.requires_grad_()  # nothing to train, and nothing that backward could complain of
        return found

    # What follows are the places where a Trainer writes and reads pickled files of its own.

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.keep is not None:
            self.keep(trainer_state(self))

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:  # noqa: ARG002
        if self._earlier is not None and self._restore is not None:
            restore_trainer(self, self._earlier)
            self._restore()

    def _load_rng_state(self, checkpoint: str | None) -> None:  # noqa: ARG002
        if self._earlier is not None:
            restore_random_state(self._earlier["random"])


class _Checkpoints(TrainerCallback):
    def __init__(self, interval: int, per_epoch: int) -> None:
        self._interval, self._per_epoch = interval, per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        # Not with the last step of an epoch, which is tested first.
        if state.global_step % self._interval == 0 and state.global_step % self._per_epoch:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step % self._per_epoch == 0:
            control.should_save = True


class _Turns(TrainerCallback):
    def __init__(self, reallocation: Reallocation) -> None:
        self._reallocation = reallocation

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._reallocation.before_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._reallocation.after_backward(state.global_step)


class _Records(TrainerCallback):
    def __init__(self, tell: Callable[[Record], None]) -> None:
        self._tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            kept = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            self._tell({"event": "step", "step": state.global_step, "epoch": state.epoch, **kept})

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        found = {
            name.replace("eval_", "test_"): value
            for name, value in (metrics or {}).items()
            if name in ("eval_loss", "eval_accuracy", "eval_pearson")
        }
        self._tell({"event": "epoch", "step": state.global_step, "epoch": state.epoch, **found})


def make_trainer(
    config: AdapterRun,
    model: nn.Module,
    data: Data,
    folder: str,
    *,
    tell: Callable[[Record], None] | None = None,
    reallocation: Reallocation | None = None,
) -> AdapterTrainer:
    """A trainer of what can be trained in a model.

    Args:
        config: the run.
        model: adapted.
        data: to train and test on.
        folder: for whatever the trainer writes, which is nothing.
        tell: told every record.
        reallocation: lets adapters take turns.
    """

    def together(examples: list[Example]) -> dict[str, Tensor]:
        return collate(examples, data.pad)

    options = config.training
    arguments = TrainingArguments(
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
    callbacks: list[TrainerCallback] = []
    if tell is not None:
        callbacks.append(_Records(tell))
    if reallocation is not None:
        callbacks.append(_Turns(reallocation))
    callbacks.append(_Checkpoints(options.checkpoint_steps, ceil(len(data.train) / options.batch_size)))
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        data_collator=together,
        train_dataset=data.train,
        eval_dataset=data.test,
        compute_metrics=None if data.objective != "classification" else _judge(data.labels),
        callbacks=callbacks,
    )
    printer = next(
        (each for each in trainer.callback_handler.callbacks if type(each).__name__ == "PrinterCallback"), None
    )
    if printer is not None:
        trainer.remove_callback(printer)
    return trainer


def _judge(labels: int) -> Callable[[Any], dict[str, float]]:
    def judged(prediction: Any) -> dict[str, float]:
        found = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        outputs, targets = torch.as_tensor(found), torch.as_tensor(prediction.label_ids)
        if labels == 1:
            pair = torch.stack([outputs.flatten(), targets.flatten().to(outputs)])
            return {"pearson": float(torch.corrcoef(pair)[0, 1])}
        return {"accuracy": float((outputs.argmax(dim=-1) == targets).float().mean())}

    return judged
