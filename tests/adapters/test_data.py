"""Test the sources of texts, their encoding, and batches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.adapters.data import Data, collate, load_data, training_batches
from astralora.adapters.run_config import DataSection
from astralora.adapters.sources import COLLECTIONS, Row, read_collection, read_files
from astralora.adapters.tokens import SPECIAL_TOKENS, VOCABULARY, load_tokens

PAD, BEGIN, END = (SPECIAL_TOKENS[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id"))
MASK = 3

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return tmp_path / name

    return written


def jsonl(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def bytes_of(text: str) -> list[int]:
    return [4 + byte for byte in text.encode()]


def load(path: Path, objective: Any = "causal", **options: Any) -> Data:
    seed = options.pop("seed", 0)
    return load_data(DataSection(train=str(path), **options), load_tokens("bytes"), objective, seed=seed)


# Local files


def test_fields_of_jsonl_are_read_by_their_keys(write: Write) -> None:
    path = write("a.jsonl", jsonl({"said": "yes", "then": "no", "mood": 1, "more": []}) + "\n  \n" + '{"said": "è",')
    path.write_text(path.read_text(encoding="utf-8") + ' "then": "", "mood": "bad"}', encoding="utf-8")
    found = read_files(path, None, "said", "then", "mood")
    assert found.train == [Row("yes", "no", 1), Row("è", "", "bad")]
    assert found.test is None
    assert not found.running
    assert read_files(path, None, "then", None, None).train == [Row("no"), Row("")]


def test_csv_may_have_quotes_and_labels_that_are_numbers(write: Write) -> None:
    content = '\ufefftext,label\n"one, and\ntwo",0\n\nthree,-1.5e1\n42,x\n'
    found = read_files(write("a.csv", content), None, "text", None, "label")
    assert found.train == [Row("one, and\ntwo", None, 0), Row("three", None, -15.0), Row("42", None, "x")]


def test_unicode_separators_do_not_end_a_line_of_jsonl(write: Write) -> None:
    text = "a\u2028b\u0085c"
    path = write("a.jsonl", jsonl({"text": text}, {"text": "d"}))
    assert [row.text for row in read_files(path, None, "text", None, None).train] == [text, "d"]


def test_plain_text_is_one_running_text(write: Write) -> None:
    found = read_files(write("a.txt", "one\ntwo\n"), write("b.md", "three"), "text", None, None)
    assert found.running
    assert found.train == [Row("one\ntwo\n")]
    assert found.test == [Row("three")]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"line 2 of .*a.jsonl is not JSON: "),
        ("a.jsonl", '\n["a"]\n', r"line 2 of .*a.jsonl is not an object with keys and values"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b", "x": 1}\n', r"line 2 of .*a.jsonl has no 'text'; it has body, x"),
        ("a.jsonl", "{}", r"line 1 of .*a.jsonl has no 'text'; it has nothing"),
        ("a.jsonl", '{"text": null}\n', r"line 1 of .*a.jsonl has no value for 'text'"),
        ("a.jsonl", '{"text": ["a"]}\n', r"line 1 of .*a.jsonl has \['a'\] for 'text', which must be a text"),
        ("a.jsonl", '{"text": ""}\n', r"a.jsonl holds no text"),
        ("a.csv", "text,label\na,1\nb\n", r"line 3 of .*a.csv has 1 columns, and its header 2"),
        ("a.csv", 'text\n"a\nb"\n"c', r"line 4 of .*a.csv is not CSV: unexpected end of data"),
        ("a.csv", "body\na\n", r"line 2 of .*a.csv has no 'text'; it has body"),
        ("a.csv", "text\n", r"a.csv holds no text"),
        ("a.txt", "", r"a.txt holds no text"),
    ],
)
def test_an_invalid_file_is_refused_with_the_line(name: str, content: str, complaint: str, write: Write) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        read_files(write(name, content), None, "text", None, None)


@pytest.mark.parametrize("label", ["[1]", "NaN", "{}"])
def test_an_invalid_label_is_refused_with_the_line(label: str, write: Write) -> None:
    path = write("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": ' + label + "}\n")
    with pytest.raises(ConfigurationError, match=r"line 2 of .*a.jsonl has the label .*, which is n"):
        read_files(path, None, "text", None, "label")


def test_unreadable_files_and_files_of_different_kinds_are_refused(write: Write, tmp_path: Path) -> None:
    text, records = write("a.txt", "some"), write("a.jsonl", jsonl({"text": "a"}))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    for arguments, complaint in (
        ((tmp_path / "none.txt", None, "text", None, None), "none.txt cannot be read: No such file"),
        ((tmp_path, None, "text", None, None), "cannot be read: it is a folder; name a file"),
        ((latin, None, "text", None, None), "latin.txt is not UTF-8 text: byte 0 is 0xe9; save it as UTF-8"),
        (
            (text, None, "text", None, "label"),
            r"a.txt is plain text, which has no columns; .* no data.label \('label'\)",
        ),
        ((text, None, "text", "more", None), r"a.txt is plain text, which has no columns; .* no data.pair \('more'\)"),
        ((text, records, "text", None, None), "a.txt and .*a.jsonl must be both plain text, or both JSONL or CSV"),
        ((records, text, "text", None, None), "a.jsonl and .*a.txt must be both"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            read_files(*arguments)


# Public collections


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], Any]:
    """Replace the hub of `datasets` by a dictionary, by path and subset."""
    import datasets

    content: dict[tuple[str, str | None], Any] = {}

    def load_dataset(path: str, subset: str | None = None) -> Any:
        if (path, subset) not in content:
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub.\nand much more")
        return content[path, subset]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return content


@pytest.mark.parametrize(
    ("name", "place", "record", "test", "expected"),
    [
        (
            "glue/sst2",
            ("nyu-mll/glue", "sst2"),
            {"sentence": "fine", "label": 1, "idx": 0},
            "validation",
            Row("fine", None, 1),
        ),
        (
            "glue/mnli",
            ("nyu-mll/glue", "mnli"),
            {"premise": "p", "hypothesis": "h", "label": 2},
            "validation_matched",
            Row("p", "h", 2),
        ),
        (
            "glue/stsb",
            ("nyu-mll/glue", "stsb"),
            {"sentence1": "a", "sentence2": "b", "label": 3.8},
            "validation",
            Row("a", "b", 3.8),
        ),
        (
            "super_glue/copa",
            ("aps/super_glue", "copa"),
            {"premise": "p", "question": "cause", "choice1": "x", "choice2": "y", "label": 0},
            "validation",
            Row("p | cause", "x | y", 0),
        ),
        (
            "super_glue/multirc",
            ("aps/super_glue", "multirc"),
            {"paragraph": "p", "question": "q", "answer": "a", "label": 0},
            "validation",
            Row("p", "q | a", 0),
        ),
    ],
)
def test_rows_of_glue_and_super_glue_are_read(
    name: str, place: Any, record: dict[str, Any], test: str, expected: Row, hub: dict[Any, Any]
) -> None:
    hub[place] = {"train": [record, record], test: [record]}
    found = read_collection(name)
    assert found.train == [expected] * 2
    assert found.test == [expected]
    assert not found.running


def test_rows_of_alpaca_become_one_text_and_have_no_test_set(hub: dict[Any, Any]) -> None:
    records = [
        {"instruction": "Add.", "input": "1 + 1", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
    ]
    hub["tatsu-lab/alpaca", None] = {"train": records}
    found = read_collection("alpaca")
    assert found.test is None
    assert found.train == [Row("Task: Add.\nInput: 1 + 1\nAnswer: 2"), Row("Task: Greet.\nAnswer: Hi")]


def test_wikitext_is_one_running_text_with_a_test_set(hub: dict[Any, Any]) -> None:
    hub["Salesforce/wikitext", "wikitext-2-raw-v1"] = {
        "train": [{"text": " = A = \n"}, {"text": "b" * 20}],
        "validation": [{"text": "c"}],
        "test": [{"text": "d" * 16}],
    }
    data = load_data(DataSection(name="wikitext", length=8), load_tokens("bytes"), "causal")
    assert torch.cat([example["input_ids"] for example in data.train]).tolist() == bytes_of(" = A = \n\n" + "b" * 15)
    assert [example["input_ids"].tolist() for example in data.test] == [bytes_of("d" * 8)] * 2


def test_all_classification_tasks_of_glue_and_super_glue_are_available() -> None:
    names = {name.partition("/")[2] for name in COLLECTIONS if name.startswith("glue/")}
    assert names == {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    names = {name.partition("/")[2] for name in COLLECTIONS if name.startswith("super_glue/")}
    # ReCoRD is not a classification task: its answers are words of a text.
    assert names == {"boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"}


def test_an_unavailable_data_set_is_refused_with_a_remedy(hub: dict[Any, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^there is no data set named 'glue/sst3'; known are glue/cola, "):
        read_collection("glue/sst3")
    complaint = (
        r"'alpaca' cannot be loaded: Couldn't reach 'tatsu-lab/alpaca' on the Hub; without a network, give local"
    )
    with pytest.raises(ConfigurationError, match=complaint):
        read_collection("alpaca")
    config = DataSection(name="alpaca", test="mine.jsonl")
    with pytest.raises(
        ConfigurationError, match=r"mine.jsonl cannot be used as test data: the data set 'alpaca' has its own"
    ):
        load_data(config, load_tokens("bytes"), "causal")
    with pytest.raises(ConfigurationError, match="there are no training data; name a file by --data"):
        load_data(DataSection(), load_tokens("bytes"), "causal")


# Tokens and examples


def test_the_longer_text_of_a_pair_is_cut_first() -> None:
    tokens = load_tokens("bytes")
    assert tokens.size == VOCABULARY == 260
    assert tokens.example("hé", None, 16) == [BEGIN, *bytes_of("hé"), END]
    whole = tokens.example("abcdefgh", "xy", 9)
    assert whole == [BEGIN, *bytes_of("abcd"), END, *bytes_of("xy"), END]
    assert len(tokens.example("abcdefgh", "uvwxyz", 4)) == 4


def test_a_causal_text_is_its_own_label_without_its_padding(write: Write) -> None:
    path = write("a.jsonl", jsonl(*({"text": "a" * size} for size in (1, 2, 3, 9))))
    data = load(path, length=6, test=str(path))
    assert [len(example["input_ids"]) for example in data.train] == [3, 4, 5, 6]
    batch = collate(data.train[:3], data.pad)
    assert batch["input_ids"].tolist()[0] == [BEGIN, *bytes_of("a"), END, PAD, PAD]
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 4, 5]
    assert batch["labels"].tolist()[0] == [BEGIN, *bytes_of("a"), END, -100, -100]


@pytest.mark.parametrize("name", ["opt", "roberta"])
def test_padding_does_not_change_the_loss(name: str, transformer: Callable[..., Any], write: Write) -> None:
    path = write("a.jsonl", jsonl({"text": "ab"}, {"text": "abcdefgh"}))
    data = load(path, "causal" if name == "opt" else "masked", test=str(path))
    model = transformer(name, vocab_size=VOCABULARY)
    with torch.no_grad():
        alone = [float(model(**collate([example], data.pad)).loss) for example in data.train]
        together = float(model(**collate(data.train, data.pad)).loss)
    # The loss is a mean over the predicted tokens of both texts: all but the first one, or the hidden ones.
    labels = [example["labels"][1:] if name == "opt" else example["labels"] for example in data.train]
    predicted = [int((each != -100).sum()) for each in labels]
    expected = sum(loss * count for loss, count in zip(alone, predicted, strict=True)) / sum(predicted)
    assert together == pytest.approx(expected, rel=1e-5)


def test_a_masked_text_hides_15_percent_of_its_tokens_and_predicts_them(write: Write) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 200
    data = load(write("a.txt", text), "masked", length=50)
    ids, labels = (torch.cat([example[name] for example in data.train]) for name in ("input_ids", "labels"))
    hidden = ids == MASK
    whole = torch.tensor(bytes_of(text))[: len(ids)]
    assert torch.equal(labels, whole.masked_fill(~hidden, -100))
    assert torch.equal(ids, whole.masked_fill(hidden, MASK))
    deviation = (0.15 * 0.85 / len(ids)) ** 0.5
    assert abs(float(hidden.float().mean()) - 0.15) < 5 * deviation
    short = load(write("b.jsonl", jsonl(*[{"text": "a"}] * 40)), "masked")
    assert all(bool((example["labels"] != -100).any()) for example in short.train), "every text has a hidden token"


def test_running_text_is_cut_into_pieces_and_its_end_is_held_out(write: Write) -> None:
    text = "".join(chr(97 + place % 26) for place in range(1005))
    data = load(write("a.txt", text), length=10)
    whole = torch.tensor(bytes_of(text))
    assert torch.equal(torch.cat([example["input_ids"] for example in data.train]), whole[:900])
    assert torch.equal(torch.cat([example["input_ids"] for example in data.test]), whole[900:1000])


def test_a_tenth_of_separate_texts_is_held_out_at_random(write: Write) -> None:
    path = write("a.jsonl", jsonl(*({"text": f"{place:03}"} for place in range(200))))

    def texts(seed: int) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
        data = load(path, seed=seed)
        train, test = ([tuple(each["input_ids"].tolist()) for each in part] for part in (data.train, data.test))
        assert (len(train), len(test)) == (180, 20)
        return set(train), set(test)

    (train, test), again, other = texts(0), texts(0), texts(1)
    assert not train & test
    assert (train, test) == again
    assert test != other[1]
    assert {text[1] for text in test} != {4 + ord("1")}, "the test texts are not only the last ones"


def test_classes_keep_the_order_of_the_labels(write: Write) -> None:
    records = [{"text": "a", "label": label} for label in (10, 2, 2, 0)]
    path = write("a.jsonl", jsonl(*records))
    data = load(path, "classification", label="label", test=str(path))
    assert data.labels == 3
    assert collate(data.train, data.pad)["labels"].tolist() == [2, 1, 1, 0]
    words = write("b.csv", "text,label\na,no\nb,yes\nc,no\n")
    data = load(words, "classification", label="label", test=str(words))
    assert [int(example["labels"]) for example in data.train] == [0, 1, 0]


def test_labels_with_a_fraction_are_real_numbers(write: Write) -> None:
    path = write("a.csv", "text,label\na,0.5\nb,2\n")
    data = load(path, "classification", label="label", test=str(path))
    assert data.labels == 1
    assert torch.equal(collate(data.train, data.pad)["labels"], torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize(
    ("train", "test", "complaint"),
    [
        ([0, 1], [2], r"the test set has the label 2, and the training set only '0', '1'"),
        ([1, 1], [1], r"needs two labels at least, and all training texts have '1'"),
        ([0.5, "good"], [0.5], r"the label 'good' is not a number, but other labels are"),
        ([0.5, 1.5], ["good"], r"the label 'good' is not a number"),
    ],
)
def test_inconsistent_labels_are_refused(
    train: Sequence[Any], test: Sequence[Any], complaint: str, write: Write
) -> None:
    paths = [
        write(name, jsonl(*({"text": "a", "label": label} for label in labels)))
        for name, labels in (("a.jsonl", train), ("b.jsonl", test))
    ]
    with pytest.raises(ConfigurationError, match=complaint):
        load(paths[0], "classification", test=str(paths[1]), label="label")


def test_data_that_do_not_suit_the_objective_are_refused(write: Write) -> None:
    path = write("a.jsonl", jsonl({"text": "a"}))
    with pytest.raises(ConfigurationError, match=r"classification needs labels; name their column by data\.label"):
        load(path, "classification")
    with pytest.raises(
        ConfigurationError, match=r"there is too little text: 0 training examples .* and 1 test examples"
    ):
        load(path)
    tokens = load_tokens("bytes")
    tokens.mask = None
    with pytest.raises(ConfigurationError, match="a masked model needs a tokenizer with a mask"):
        load_data(DataSection(train=str(path)), tokens, "masked")


def test_the_limit_holds_for_training_and_test_examples(write: Write) -> None:
    data = load(write("a.txt", "a" * 1000), length=10, limit=4)
    assert (len(data.train), len(data.test)) == (4, 4)


def test_an_epoch_of_batches_has_all_examples_in_an_order_by_seed(write: Write) -> None:
    data = load(write("a.jsonl", jsonl(*({"text": chr(97 + place)} for place in range(11)))))

    def epoch(seed: int, number: int) -> list[int]:
        stream = training_batches(data, 4, seed=seed)
        batches = [next(stream)["input_ids"] for _ in range(3 * (number + 1))][3 * number :]
        assert [len(batch) for batch in batches] == [4, 4, 2]
        return torch.cat(batches)[:, 1].tolist()

    first = epoch(0, 0)
    everything = sorted(int(example["input_ids"][1]) for example in data.train)
    assert sorted(first) == sorted(epoch(0, 1)) == everything
    assert first == epoch(0, 0)
    assert first not in (epoch(0, 1), epoch(1, 0), everything)
