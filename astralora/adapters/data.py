"""Turn texts into batches for a transformer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import derive_generator
from .models import Objective
from .proxies import Batch
from .run_config import DataSection
from .sources import Row, Source, read_collection, read_files
from .tokens import Tokens

__all__ = ["Data", "Example", "collate", "load_data", "training_batches"]

Example = dict[str, Tensor]
"""``input_ids`` and ``labels`` of one text, (length,) each; a text with a class has a label of shape ()."""

_Pair = tuple[Tensor, Tensor | None]  # tokens and target
_Target = Callable[[Row], Tensor]

_IGNORED = -100  # label without a loss in transformers
_MASK_SHARE = 0.15  # share of hidden tokens for masked models (Devlin et al.)
_TEST_SHARE = 0.1  # share of the examples held out if there is no test set


@dataclass(frozen=True, slots=True)
class Data:
    """Hold a data set of encoded examples.

    Attributes:
        objective: objective of the training.
        train: training examples.
        test: test examples.
        labels: number of classes; 1 if the label is a number, 0 without labels.
        pad: padding token.
    """

    objective: Objective
    train: list[Example]
    test: list[Example]
    labels: int
    pad: int

    def digest(self) -> str:
        """Return a hash of the examples and their order."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for example in part:
                for value in (example["input_ids"], example["labels"]):
                    digest.update(f"{tuple(value.shape)}{value.tolist()}".encode())
            digest.update(b"end")
        return digest.hexdigest()


def load_data(config: DataSection, tokens: Tokens, objective: Objective, *, seed: int = 0) -> Data:
    """Read a data set, encode it, and split it into training and test examples.

    Args:
        config: files or name of the data set.
        tokens: encoder of the model.
        objective: objective of the training; only ``"classification"`` uses labels, and needs them.
        seed: seed of the split if there is no test set, and of the masks of a masked model.

    Raises:
        ConfigurationError: the data cannot be read, or do not suit the objective.
    """
    source = _read(config)
    target: _Target | None = None
    labels = 0
    if objective == "classification":
        target, labels = _targets(source)
    elif objective == "masked" and tokens.mask is None:
        raise ConfigurationError("a masked model needs a tokenizer with a mask; choose another, or 'bytes'")
    encoded = [
        _encoded(rows, source.running, tokens, config.length, target)
        for rows in (source.train, source.test)
        if rows is not None
    ]
    parts = encoded if len(encoded) == 2 else _hold_out(encoded[0], seed, in_order=source.running)
    train, test = (part[: config.limit] for part in parts)
    if not train or not test:
        raise ConfigurationError(
            f"there is too little text: {len(train)} training examples of {config.length} tokens and {len(test)} test "
            f"examples; give more text, or a smaller data.length"
        )
    examples = [
        [_example(*pair, tokens, objective, seed, place) for place, pair in enumerate(part)] for part in (train, test)
    ]
    return Data(objective, examples[0], examples[1], labels, tokens.pad)


def collate(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Pad examples to the same length and stack them: (batch, length) each."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(values: Tensor, filling: int) -> Tensor:
        return torch.nn.functional.pad(values, (0, longest - len(values)), value=filling)

    ids = [example["input_ids"] for example in examples]
    labels = [example["labels"] for example in examples]
    return {
        "input_ids": torch.stack([padded(each, pad) for each in ids]),
        "attention_mask": torch.stack([padded(torch.ones_like(each), 0) for each in ids]),
        "labels": torch.stack([padded(each, _IGNORED) if each.ndim else each for each in labels]),
    }


def training_batches(data: Data, size: int, *, seed: int) -> Iterator[Batch]:
    """Yield batches of the training examples in random order, endlessly."""
    epoch = 0
    while True:
        generator = derive_generator(seed, "batches", epoch)
        order = torch.randperm(len(data.train), generator=generator).tolist()
        for start in range(ceil(len(order) / size)):
            yield collate([data.train[place] for place in order[start * size :][:size]], data.pad)
        epoch += 1


def _read(config: DataSection) -> Source:
    if config.train is not None:
        test = None if config.test is None else Path(config.test)
        return read_files(Path(config.train), test, config.text, config.pair, config.label)
    if config.name is None:
        raise ConfigurationError("there are no training data; name a file by --data, or a data set such as glue/sst2")
    if config.test is not None:
        raise ConfigurationError(
            f"{config.test} cannot be used as test data: the data set {config.name!r} has its own test set"
        )
    return read_collection(config.name)


def _targets(source: Source) -> tuple[_Target, int]:
    """Return a function from a row to its target, and the number of classes, or 1 if labels are real numbers."""
    train_labels = [row.label for row in source.train]
    test_labels = [row.label for row in source.test or ()]
    if any(label is None for label in train_labels + test_labels):
        raise ConfigurationError("classification needs labels; name their column by data.label")
    if any(isinstance(label, float) for label in train_labels):
        for label in train_labels + test_labels:
            if isinstance(label, str):
                raise ConfigurationError(f"the label {label!r} is not a number, but other labels are, such as 0.5")
        return lambda row: torch.tensor(float(row.label or 0)), 1
    by_name = {str(label): label for label in train_labels}
    # Labels that are numbers keep their order, so that 0 stays class 0.
    classes = sorted(by_name, key=lambda name: (isinstance(by_name[name], str), by_name[name]))
    if len(classes) < 2:
        raise ConfigurationError(
            f"classification needs two labels at least, and all training texts have {classes[0]!r}"
        )
    for label in test_labels:
        if str(label) not in by_name:
            raise ConfigurationError(
                f"the test set has the label {label!r}, and the training set only {', '.join(map(repr, classes))}"
            )
    numbers = {name: number for number, name in enumerate(classes)}
    return lambda row: torch.tensor(numbers[str(row.label)]), len(classes)


def _encoded(rows: Sequence[Row], running: bool, tokens: Tokens, length: int, target: _Target | None) -> list[_Pair]:
    if running:
        text = torch.tensor(tokens.encode("\n".join(row.text for row in rows)), dtype=torch.long)
        return [(piece, None) for piece in text.split(length) if len(piece) == length]
    encoded = [torch.tensor(tokens.example(row.text, row.pair, length), dtype=torch.long) for row in rows]
    # A text of one token has no token to predict or to hide.
    return [
        (ids, None if target is None else target(row))
        for ids, row in zip(encoded, rows, strict=True)
        if target is not None or len(ids) > 1
    ]


def _hold_out(examples: list[_Pair], seed: int, *, in_order: bool) -> list[list[_Pair]]:
    count = max(round(_TEST_SHARE * len(examples)), 1)
    if in_order:  # a random split would put test pieces between training pieces
        return [examples[:-count], examples[-count:]]
    order = torch.randperm(len(examples), generator=derive_generator(seed, "held out")).tolist()
    shuffled = [examples[place] for place in order]
    return [shuffled[count:], shuffled[:count]]


def _example(
    ids: Tensor, target: Tensor | None, tokens: Tokens, objective: Objective, seed: int, place: int
) -> Example:
    if objective == "classification":
        assert target is not None
        return {"input_ids": ids, "labels": target}
    if objective == "causal":
        return {"input_ids": ids, "labels": ids}
    assert tokens.mask is not None
    hidden = torch.rand(len(ids), generator=derive_generator(seed, "masks", place)) < _MASK_SHARE
    hidden[0] |= not bool(hidden.any())  # without a hidden token, there is no loss
    return {"input_ids": ids.masked_fill(hidden, tokens.mask), "labels": ids.masked_fill(~hidden, _IGNORED)}
