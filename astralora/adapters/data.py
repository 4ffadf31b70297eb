"""From texts to batches that a transformer can be called with."""

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
from .settings import DataSection
from .sources import Row, Source, read_collection, read_files
from .tokens import Tokens

__all__ = ["Data", "Example", "collate", "load_data", "training_batches"]

Example = dict[str, Tensor]
"""``input_ids`` and ``labels`` of one text: (length,) each, or () for the label of a text."""

_Pair = tuple[Tensor, Tensor | None]  # tokens and target
_Target = Callable[[Row], Tensor]

_IGNORED = -100  # the label that transformers takes no loss of
_MASKED = 0.15  # share of tokens that a masked model has to guess, as Devlin et al. have it
_TEST = 0.1  # share that is held out where there is no test set


@dataclass(frozen=True, slots=True)
class Data:
    """A data set, ready for a model.

    Attributes:
        objective: what there is to learn.
        train: to train on.
        test: to test on.
        labels: number of classes, 1 for a number, 0 where there are no labels.
        pad: token that fills up what is short.
    """

    objective: Objective
    train: list[Example]
    test: list[Example]
    labels: int
    pad: int

    def digest(self) -> str:
        """The same for the same examples in the same order, and for no others."""
        found = hashlib.sha256()
        for part in (self.train, self.test):
            for example in part:
                for value in (example["input_ids"], example["labels"]):
                    found.update(f"{tuple(value.shape)}{value.tolist()}".encode())
            found.update(b"end")
        return found.hexdigest()


def load_data(config: DataSection, tokens: Tokens, objective: Objective, *, seed: int = 0) -> Data:
    """Read, split, encode.

    Args:
        config: which data.
        tokens: of the model.
        objective: ``"classification"`` needs labels; without it they are left aside.
        seed: of what is held out where there is no test set, and of the masks of a masked model.

    Raises:
        ConfigurationError: data that cannot be read, or are not for this objective.
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
            f"there is too little text: {len(train)} examples of {config.length} tokens to train on, "
            f"{len(test)} to test on; give more, or a smaller data.length"
        )
    examples = [
        [_example(*pair, tokens, objective, seed, place) for place, pair in enumerate(part)] for part in (train, test)
    ]
    return Data(objective, examples[0], examples[1], labels, tokens.pad)


def collate(examples: Sequence[Example], pad: int) -> dict[str, Tensor]:
    """Put examples of different lengths together: (batch, length) each."""
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
    """Batches of the training examples in random order, without end."""
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
        raise ConfigurationError("there is nothing to train on; name a file by --data, or a data set such as glue/sst2")
    if config.test is not None:
        raise ConfigurationError(
            f"{config.test} cannot be tested on: the data set {config.name!r} has its own test set"
        )
    return read_collection(config.name)


def _targets(source: Source) -> tuple[_Target, int]:
    """What each row is to be taken for, and how many classes there are; 1 where labels are numbers to be met."""
    found = [row.label for row in source.train]
    others = [row.label for row in source.test or ()]
    if any(label is None for label in found + others):
        raise ConfigurationError("classification needs labels; name their column by data.label")
    if any(isinstance(label, float) for label in found):
        for label in found + others:
            if isinstance(label, str):
                raise ConfigurationError(
                    f"the label {label!r} is no number, and others are numbers to be met, such as 0.5"
                )
        return lambda row: torch.tensor(float(row.label or 0)), 1
    known = {str(label): label for label in found}
    # In the order of their values where they are numbers already: 0 stays 0.
    order = sorted(known, key=lambda name: (isinstance(known[name], str), known[name]))
    if len(order) < 2:
        raise ConfigurationError(f"classification needs two labels at least, and all training texts have {order[0]!r}")
    for label in others:
        if str(label) not in known:
            raise ConfigurationError(
                f"the test set has the label {label!r}, and the training set only {', '.join(map(repr, order))}"
            )
    places = {name: place for place, name in enumerate(order)}
    return lambda row: torch.tensor(places[str(row.label)]), len(order)


def _encoded(rows: Sequence[Row], running: bool, tokens: Tokens, length: int, target: _Target | None) -> list[_Pair]:
    if running:
        text = torch.tensor(tokens.encode("\n".join(row.text for row in rows)), dtype=torch.long)
        return [(piece, None) for piece in text.split(length) if len(piece) == length]
    encoded = [torch.tensor(tokens.example(row.text, row.pair, length), dtype=torch.long) for row in rows]
    # What has no second token has nothing to predict, and nothing to hide.
    return [
        (ids, None if target is None else target(row))
        for ids, row in zip(encoded, rows, strict=True)
        if target is not None or len(ids) > 1
    ]


def _hold_out(examples: list[_Pair], seed: int, *, in_order: bool) -> list[list[_Pair]]:
    count = max(round(_TEST * len(examples)), 1)
    if in_order:  # what follows in a text is not to be known from what stands around it
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
    hidden = torch.rand(len(ids), generator=derive_generator(seed, "masks", place)) < _MASKED
    hidden[0] |= not bool(hidden.any())  # a text with nothing to guess has no loss
    return {"input_ids": ids.masked_fill(hidden, tokens.mask), "labels": ids.masked_fill(~hidden, _IGNORED)}
