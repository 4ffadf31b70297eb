"""Read texts from local files, or from public data sets with the `datasets` library."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices.files import file_name, read_text
from ..devices.parsing import parse_json
from ..devices.validation import printable

__all__ = ["COLLECTIONS", "Collection", "Row", "Source", "read_collection", "read_files"]


_LIMIT = 4 * 2**30  # bytes of a file of texts


class Row(NamedTuple):
    """Hold a text, the second text if it is a pair, and the label."""

    text: str
    pair: str | None = None
    label: int | float | str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Hold training and test texts.

    Attributes:
        train: training texts.
        test: test texts; None if the source has none.
        running: whether the rows are parts of one continuous text, which is cut into pieces; otherwise each row is a
            text.
    """

    train: list[Row]
    test: list[Row] | None
    running: bool


@dataclass(frozen=True, slots=True)
class Collection:
    """Describe a public data set.

    Attributes:
        path: path on the hub.
        subset: name of its configuration there.
        columns: columns of the text and of the second text of a pair; a plus joins several columns.
        test: split whose labels are public; None without a test set.
        label: column of the label; None if the data have no labels.
        running: whether the rows are parts of one continuous text; see `Source`.
    """

    path: str
    subset: str | None
    columns: tuple[str, ...]
    test: str | None = "validation"
    label: str | None = "label"
    running: bool = False


def _glue(subset: str, *columns: str, test: str = "validation") -> Collection:
    return Collection("nyu-mll/glue", subset, columns, test)


def _super_glue(subset: str, *columns: str) -> Collection:
    return Collection("aps/super_glue", subset, columns)


COLLECTIONS: dict[str, Collection] = {
    "glue/cola": _glue("cola", "sentence"),
    "glue/sst2": _glue("sst2", "sentence"),
    "glue/mrpc": _glue("mrpc", "sentence1", "sentence2"),
    "glue/qqp": _glue("qqp", "question1", "question2"),
    "glue/stsb": _glue("stsb", "sentence1", "sentence2"),
    "glue/mnli": _glue("mnli", "premise", "hypothesis", test="validation_matched"),
    "glue/qnli": _glue("qnli", "question", "sentence"),
    "glue/rte": _glue("rte", "sentence1", "sentence2"),
    "glue/wnli": _glue("wnli", "sentence1", "sentence2"),
    "super_glue/boolq": _super_glue("boolq", "question", "passage"),
    "super_glue/cb": _super_glue("cb", "premise", "hypothesis"),
    "super_glue/copa": _super_glue("copa", "premise+question", "choice1+choice2"),
    "super_glue/multirc": _super_glue("multirc", "paragraph", "question+answer"),
    "super_glue/rte": _super_glue("rte", "premise", "hypothesis"),
    "super_glue/wic": _super_glue("wic", "word+sentence1", "sentence2"),
    "super_glue/wsc": _super_glue("wsc", "text", "span1_text+span2_text"),
    "alpaca": Collection("tatsu-lab/alpaca", None, ("instruction", "input", "output"), test=None, label=None),
    "wikitext": Collection(
        "Salesforce/wikitext", "wikitext-2-raw-v1", ("text",), test="test", label=None, running=True
    ),
}
"""Public data sets by name."""


def read_collection(name: str) -> Source:
    """Download a public data set, or read it from the cache.

    Raises:
        ConfigurationError: the name is unknown, `datasets` is not installed, or the data set cannot be loaded.
    """
    if name not in COLLECTIONS:
        raise ConfigurationError(
            f"there is no data set named {name!r}; known are {', '.join(COLLECTIONS)}, and files by data.train"
        )
    collection = COLLECTIONS[name]
    datasets = require("datasets", f"the data set {name!r}", extra="lowrank")
    try:
        splits = datasets.load_dataset(collection.path, collection.subset)
        train = list(_rows(splits["train"], collection))
        test = None if collection.test is None else list(_rows(splits[collection.test], collection))
    # The libraries below have no common base class for errors of network and server.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ConfigurationError(
            f"the data set {name!r} cannot be loaded: {reason}; without a network, give local files (JSONL, CSV or "
            f"text) by --data"
        ) from None
    return Source(train, test, collection.running)


def read_files(train: Path, test: Path | None, text: str, pair: str | None, label: str | None) -> Source:
    """Read local files: JSONL with an object in each line, CSV with a header, or plain text.

    Args:
        train: file of training data.
        test: file of test data.
        text: key or column of the text.
        pair: key or column of the second text.
        label: key or column of the label; in CSV, a label in the form of a number becomes a number.

    Raises:
        ConfigurationError: a file cannot be read, or a line lacks a key or column; the message names the line.
    """
    running = _is_text(train)
    if running and not (pair is label is None):
        option = f"data.pair ({pair!r})" if label is None else f"data.label ({label!r})"
        raise ConfigurationError(f"{train} is plain text, which has no columns; give JSONL or CSV, or no {option}")
    if test is not None and _is_text(test) != running:
        raise ConfigurationError(f"{train} and {test} must be both plain text, or both JSONL or CSV")
    rows = [list(_read(path, text, pair, label)) for path in (train, test) if path is not None]
    for path, part in zip((train, test), rows, strict=False):
        if not any(row.text for row in part):
            raise ConfigurationError(f"{path} holds no text")
    return Source(rows[0], rows[1] if test is not None else None, running)


def _is_text(path: Path) -> bool:
    return path.suffix.lower() not in (".jsonl", ".json", ".csv")


def _read(path: Path, text: str, pair: str | None, label: str | None) -> Iterator[Row]:
    content = read_text(path, error=ConfigurationError, limit=_LIMIT)
    if _is_text(path):
        yield Row(content)
        return
    records = _csv(content, path) if path.suffix.lower() == ".csv" else _jsonl(content, path)
    for number, record in records:
        where = f"line {number} of {file_name(path)}"
        target = None if label is None else _value(record, label, where)
        if isinstance(target, str) and path.suffix.lower() == ".csv":
            target = _number(target)
        if not isinstance(target, str | int | float | None):
            raise ConfigurationError(
                f"{where} has the label {printable(repr(target))}, which is neither a number nor a word"
            )
        if isinstance(target, int) and abs(target) >= 2**63:
            raise ConfigurationError(f"{where} has a label of more than 64 bits")
        if isinstance(target, float) and not isfinite(target):
            raise ConfigurationError(f"{where} has the label {target!r}, which is not finite")
        yield Row(_text(record, text, where), None if pair is None else _text(record, pair, where), target)


def _value(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise ConfigurationError(f"{where} has no {key!r}; it has {printable(', '.join(record)) or 'nothing'}")
    if record[key] is None:
        raise ConfigurationError(f"{where} has no value for {key!r}")
    return record[key]


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = _value(record, key, where)
    if not isinstance(value, str):
        raise ConfigurationError(f"{where} has {printable(repr(value))} for {key!r}, which must be a text")
    return value


def _number(word: str) -> int | float | str:
    """Convert a word that is a number in JSON, and return other words unchanged."""
    if not re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", word):
        return word
    # A whole number of more than 64 bits is no class.
    return float(word) if re.search(r"[.eE]", word) or len(word) > 19 else int(word)


def _jsonl(content: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # splitlines would also split at Unicode separators inside of strings.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {file_name(path)}"
        record = parse_json(line, where, error=ConfigurationError, any_number=True)
        if not isinstance(record, dict):
            raise ConfigurationError(f"{where} is not an object with keys and values")
        yield number, record


def _csv(content: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1  # first line of a record, which may have several lines in quotes
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ConfigurationError(f"line {number} of {file_name(path)} is not CSV: {error}") from None
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
        elif len(fields) != len(header):
            where = f"line {number} of {file_name(path)}"
            raise ConfigurationError(f"{where} has {len(fields)} columns, and its header {len(header)}")
        else:
            yield number, dict(zip(header, fields, strict=True))


def _rows(split: Iterable[Mapping[str, Any]], collection: Collection) -> Iterator[Row]:
    for record in split:
        text, *more = (_joined(record, column) for column in collection.columns)
        if collection.label is not None:
            yield Row(text, more[0] if more else None, record[collection.label])
        else:
            yield Row(_instruction(text, *more) if more else text)


def _joined(record: Mapping[str, Any], column: str) -> str:
    return " | ".join(str(record[part]) for part in column.split("+")) if "+" in column else str(record[column])


def _instruction(task: str, task_input: str, answer: str) -> str:
    parts = [f"Task: {task}", f"Input: {task_input}" if task_input else "", f"Answer: {answer}"]
    return "\n".join(part for part in parts if part)
