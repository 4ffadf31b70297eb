"""Test complete runs from the command line."""

import json
import tomllib
from collections.abc import Callable
from math import log
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from astralora.adapters import AdapterConfig, Scores
from astralora.adapters.adapted import AdaptedModel, adapt
from astralora.adapters.folder import AdapterFolder
from astralora.adapters.models import load_model
from astralora.adapters.run import train_run
from astralora.adapters.run_config import AdapterRun
from astralora.cli.app import app
from astralora.training.checkpoint import load_state

ADAPTERS = 19
"""Adapters of tiny-opt: two layers of six projections and four shortcuts, without shortcut2 of layer 0."""

DYNAMIC = ("--dynamic", "--batches", "1")
STEPS = ("--steps", "4")

Command = Callable[..., Any]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs ``astralora adapters`` in a folder with corpus.txt and returns the result."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("".join(topics.values())[:12_000], encoding="utf-8")

    def run(*arguments: str, fails: bool = False) -> Any:
        found = CliRunner().invoke(app, ["adapters", *arguments])
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        assert found.exit_code == (1 if fails else 0), found.stderr
        return found

    return run


def refusal(run: Any) -> str:
    assert run.stdout == ""
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, "a refusal is one line"
    return str(lines[0]).removeprefix("error: ")


def trained(folder: str) -> dict[str, Tensor]:
    state = load_state(Path(folder) / "checkpoint")
    assert state is not None
    adapters: dict[str, Tensor] = state["adapters"]
    return adapters


def fresh(seed: int = 0, config: AdapterConfig | None = None) -> AdaptedModel:
    return adapt(load_model("tiny-opt", "causal", seed=seed), config, seed=seed)


def moved(folder: str, config: AdapterConfig | None = None) -> set[str]:
    """Return the keys of the adapters that a run has trained."""
    adapted, after = fresh(config=config), trained(folder)
    before = adapted.trained_state()
    assert before.keys() == after.keys()
    names = {id(parameter): name for name, parameter in adapted.model.named_parameters()}
    return {
        unit.key
        for unit in adapted.units
        for parameter in unit.parameters()
        if not torch.equal(before[names[id(parameter)]], after[names[id(parameter)]])
    }


def events(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


# Train and test


def test_a_run_writes_its_files_and_prints_its_folder(command: Command) -> None:
    found = command("train", "--data", "corpus.txt", *STEPS)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("adapters-tiny-opt-uniform-seed0-")
    assert {path.name for path in folder.iterdir()} == {"config.toml", "metrics.jsonl", "summary.json", "checkpoint"}
    assert f"runs/{folder.name}" in found.stdout
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["steps"], summary["adapters"], summary["adapters_on"]) == (4, ADAPTERS, ADAPTERS)
    assert (summary["method"], summary["objective"]) == ("uniform", "causal")
    steps = [record for record in events(str(folder)) if record["event"] == "step"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    # A model with random weights predicts 260 tokens with equal probability: a loss near log 260.
    assert steps[0]["loss"] == pytest.approx(5.56, abs=0.1)
    assert moved(str(folder)) == {unit.key for unit in fresh().units}


@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_the_config_of_a_run_repeats_it_bit_for_bit(command: Command) -> None:
    command("train", "--data", "corpus.txt", *STEPS, *DYNAMIC, "--seed", "3", "-o", "a")
    torch.rand(5)  # another state of the global generator
    command("train", "--config", "a/config.toml", "-o", "b")
    assert Path("a/config.toml").read_text() == Path("b/config.toml").read_text()
    first, second = trained("a"), trained("b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Path("a/history.jsonl").read_text() == Path("b/history.jsonl").read_text()
    assert [e for e in events("a") if e["event"] == "step"] == [e for e in events("b") if e["event"] == "step"]


def test_a_run_does_not_change_the_global_random_state(command: Command) -> None:
    before = torch.get_rng_state()
    command("train", "--data", "corpus.txt", *STEPS, *DYNAMIC, "-o", "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_lowers_the_loss(command: Command) -> None:
    # The text repeats three letters. A model of their frequencies has a loss of log 3 nats a byte; a lower loss shows
    # that the model predicts the next letter. With weights of this size, frozen embeddings of tokens differ enough.
    Path("abc.txt").write_text("abc" * 4000)
    options = ("--length", "32", "--steps", "60", "--lr", "0.02", "--set", "model.options.init_std=0.4", "--json")
    summary = json.loads(command("train", "--data", "abc.txt", *options, "-o", "a").stdout)
    assert summary["test_loss"] < log(3)


def test_testing_a_run_reproduces_its_test_loss(command: Command) -> None:
    command("train", "--data", "corpus.txt", *STEPS, *DYNAMIC, "-o", "a")
    summary = json.loads(Path("a/summary.json").read_text())
    before = {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()}
    found = json.loads(command("test", "a", "--json").stdout)
    assert found == {"test_loss": summary["test_loss"]}
    assert "test loss" in command("test", "a").stdout
    assert {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()} == before
    Path("other.txt").write_text("0123456789" * 100)
    assert json.loads(command("test", "a", "--data", "other.txt", "--json").stdout) != found


@pytest.mark.parametrize(
    ("model", "options", "score"),
    [
        ("tiny-opt", (), "test_accuracy"),
        ("tiny-roberta", (), "test_accuracy"),
        ("tiny-gemma", ("--objective", "causal"), "test_loss"),
        ("tiny-roberta", ("--objective", "masked"), "test_loss"),
        ("tiny-opt", ("--label", "size"), "test_pearson"),
    ],
)
def test_every_model_is_trained_on_its_objectives(
    model: str, options: tuple[str, ...], score: str, command: Command
) -> None:
    records = [{"text": "ab" * (n % 7), "size": n / 2, "kind": ["odd", "even"][n % 2]} for n in range(40)]
    Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    label = () if "--objective" in options or "--label" in options else ("--label", "kind")
    arguments = ("train", "--data", "a.jsonl", "--model", model, *label, *options, *STEPS, "-o", "run")
    summary = json.loads(command(*arguments, "--json").stdout)
    assert summary[score] == pytest.approx(summary[score])  # a number, and not NaN
    found = json.loads(command("test", "run", "--json").stdout)
    assert found[score] == pytest.approx(summary[score], abs=1e-6)


# Score, search, train the result


def test_only_the_adapters_of_a_search_are_trained(command: Command) -> None:
    shown = command("score", "--data", "corpus.txt", "--batches", "2", "-o", "scores.toml").stdout
    scores = Scores.load(Path("scores.toml"))
    assert (scores.proxy, scores.batches, len(scores.values)) == ("grad_norm", 2, ADAPTERS)
    ranked = sorted(scores.values, key=lambda key: -scores.values[key])
    assert [line.split()[0] for line in shown.splitlines()[1:-1]] == ranked
    command("search", "scores.toml", "--turn-on", "0.25", "--rank", "3", "-o", "adapters.toml")
    config = AdapterConfig.load(Path("adapters.toml"))
    best = set(ranked[: round(0.25 * ADAPTERS)])
    command("train", "--data", "corpus.txt", "--adapters", "adapters.toml", *STEPS, "-o", "run")
    adapted = fresh(config=config)
    assert {unit.key for unit in adapted.units} == moved("run", config) == best
    assert {unit.rank for unit in adapted.units} == {3}
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["trained_parameters"] == sum(unit.cost for unit in adapted.units)


def test_the_trained_adapters_of_a_run_are_scored(command: Command) -> None:
    command("train", "--data", "corpus.txt", *STEPS, "-o", "run")
    options = ("--proxy", "snip", "--batches", "2")
    command("score", "--run", "run", *options, "-o", "left.toml")
    assert all(value > 0 for value in Scores.load(Path("left.toml")).values.values())
    found = command("score", "--data", "corpus.txt", *options, "-o", "begin.toml")
    # Every B starts at zero, so that snip ties, and a note says so.
    assert set(Scores.load(Path("begin.toml")).values.values()) == {0.0}
    assert "note: all 19 adapters score 0 by 'snip', so that their order is random: every B is zero" in found.stderr
    command("score", "--data", "corpus.txt", *options, "--warmup-steps", "3", "-o", "warm.toml")
    assert all(value > 0 for value in Scores.load(Path("warm.toml")).values.values())


@pytest.mark.parametrize("proxy", ["constant", "grad_norm", "snip", "synflow", "alpha_test"])
def test_scores_of_every_proxy_are_reproducible(proxy: str, command: Command) -> None:
    arguments = ("score", "--data", "corpus.txt", "--proxy", proxy, "--batches", "1", "--perturb", "0.1")
    for name in ("a.toml", "b.toml"):
        command(*arguments, "-o", name)
    assert Path("a.toml").read_text() == Path("b.toml").read_text()


# Dynamic runs


def test_a_dynamic_run_records_which_adapters_were_on_and_how_often(command: Command) -> None:
    options = ("--steps", "6", "--realloc-n", "0.1", *DYNAMIC, "--json")
    summary = json.loads(command("train", "--data", "corpus.txt", *options, "-o", "run").stdout)
    lines = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    # 11,999 bytes are 187 texts of 64; 168 of them are 21 steps, and 0.1 of these is 2.
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert summary["reallocations"] == 3
    assert [len(line["enabled"]) for line in lines] == [round(0.25 * ADAPTERS)] * 3
    assert all(len(line["scores"]) == ADAPTERS for line in lines)
    recorded = [record for record in events("run") if record["event"] == "reallocation"]
    assert [record["enabled"] for record in recorded] == [line["enabled"] for line in lines]
    frequency = Scores.load(Path("run/frequency.toml"))
    assert frequency.proxy == "frequency"
    for key, value in frequency.values.items():
        assert value == pytest.approx(sum(key in line["enabled"] for line in lines) / 3)
    assert moved("run") == {key for line in lines for key in line["enabled"]}
    assert summary["adapters_on"] == len(lines[-1]["enabled"])
    command("search", "run/frequency.toml", "-o", "adapters.toml")
    command("train", "--data", "corpus.txt", "--adapters", "adapters.toml", *STEPS, "-o", "again")


def test_groups_off_keeps_shortcuts_off(command: Command) -> None:
    command("train", "--data", "corpus.txt", *STEPS, *DYNAMIC, "--groups", "off", "-o", "run")
    assert not any("residual" in key or "shortcut" in key for key in moved("run"))
    assert moved("run")


def test_the_share_in_a_file_is_kept_unless_an_option_overrides_it(command: Command) -> None:
    Path("run.toml").write_text("[dynamic]\nturn_on = 0.5\n[scoring]\nbatches = 1\n")
    arguments = ("train", "--data", "corpus.txt", *STEPS, "--config", "run.toml")
    command(*arguments, "--dynamic", "-o", "a")
    assert tomllib.loads(Path("a/config.toml").read_text())["dynamic"]["turn_on"] == 0.5
    command(*arguments, "--dynamic", "--turn-on", "0.75", "-o", "b")
    assert tomllib.loads(Path("b/config.toml").read_text())["dynamic"]["turn_on"] == 0.75


MODES = {
    "uniform": (),
    "static": ("--adapters", "adapters.toml"),
    "combined": (*DYNAMIC, "--groups", "combined"),
    "separated": (*DYNAMIC, "--groups", "separated"),
    "off": (*DYNAMIC, "--groups", "off"),
    "reuse": (*DYNAMIC, "--set", "dynamic.reuse=true"),
    "warmed up": (*DYNAMIC, "--warmup-steps", "2", "--proxy", "snip"),
    "none on": (*DYNAMIC, "--turn-on", "0"),
    "all on": (*DYNAMIC, "--turn-on", "1"),
    "decaying": ("--set", "training.weight_decay=0.1"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_learning_rate_of_0_changes_no_weight(mode: str, command: Command) -> None:
    config = None
    if mode == "static":
        command("score", "--data", "corpus.txt", "--batches", "1")
        command("search", "scores.toml")
        config = AdapterConfig.load(Path("adapters.toml"))
    command("train", "--data", "corpus.txt", *STEPS, "--lr", "0", *MODES[mode], "-o", "run")
    assert moved("run", config) == set()


@pytest.mark.parametrize("share", ["0", "1"])
@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_shares_of_0_and_1_are_trained(share: str, way: str, command: Command) -> None:
    expected = {unit.key for unit in fresh().units} if share == "1" else set()
    if way == "dynamic":
        command("train", "--data", "corpus.txt", *STEPS, *DYNAMIC, "--turn-on", share, "-o", "run")
        assert moved("run") == expected
        return
    command("score", "--data", "corpus.txt", "--batches", "1")
    command("search", "scores.toml", "--turn-on", share)
    command("train", "--data", "corpus.txt", "--adapters", "adapters.toml", *STEPS, "-o", "run")
    assert moved("run", AdapterConfig.load(Path("adapters.toml"))) == expected
    assert "test_loss" in json.loads(command("test", "run", "--json").stdout)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("train",), "there are no training data; name a file by --data"),
        (("train", "--data", "none.txt"), "none.txt cannot be read: No such file or directory"),
        (("train", "--data", "corpus.txt", "--model", "tiny-bert"), "'tiny-bert' cannot be loaded: "),
        (("train", "--data", "corpus.txt", "--turn-on", "0.5"), "add --dynamic"),
        (("train", "--data", "corpus.txt", "--dynamic", "--turn-on", "2"), "dynamic.turn_on in the configuration: "),
        (("train", "--data", "corpus.txt", "--proxy", "luck"), "luck"),
        (("train", "--data", "corpus.txt", "--length", "600"), "the model takes 514 tokens at most"),
        (("train", "--data", "corpus.txt", "--length", "3"), "data.length in the configuration: "),
        (("train", "--data", "corpus.txt", "--set", "data.lenght=9"), "data.lenght in the configuration: there is no"),
        (("train", "--data", "corpus.txt", "--set", "model.options.width=9"), "model.options.width is not known to"),
        (("train", "--data", "corpus.txt", "--set", "adapters.all_layers.gate_proj.r=2"), "gate_proj does not exist"),
        (("train", "--data", "corpus.txt", "--objective", "classification"), "classification needs labels"),
        (("train", "--data", "corpus.txt", "--objective", "masked"), "the model 'tiny-opt' cannot be made: "),
        (("train", "--data", "corpus.txt", "--model", "tiny-roberta", "--objective", "causal"), "choose the objective"),
        (("train", "--data", "corpus.txt", "--dynamic", "--proxy", "synflow", "--set", "dynamic.reuse=true"),
         "'synflow' cannot score by the gradients of training"),
        (("train", "--data", "corpus.txt", "-o", "."), ". is not an empty folder; give another"),
        (("train", "--data", "corpus.txt", "--adapters", "none.toml"), "none.toml cannot be read"),
        (("score", "--data", "corpus.txt", "--run", "r"), "--run uses the configuration of the run"),
        (("score", "--run", "r"), "r holds no run: it has no config.toml"),
        (("search", "none.toml"), "none.toml cannot be read: No such file or directory"),
        (("search", "corpus.txt"), "corpus.txt is not TOML"),
        (("test", "r"), "r holds no run: it has no config.toml"),
    ],
)  # fmt: skip
def test_refused_commands_print_one_line_and_write_no_file(
    arguments: tuple[str, ...], complaint: str, command: Command
) -> None:
    output = () if "-o" in arguments or arguments[0] == "test" else ("-o", "out")
    assert complaint in refusal(command(*arguments, *output, fails=True))
    assert [path.name for path in Path().iterdir()] == ["corpus.txt"]


def test_a_run_is_not_overwritten(command: Command) -> None:
    command("train", "--data", "corpus.txt", *STEPS, "-o", "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    complaint = refusal(command("train", "--data", "corpus.txt", *STEPS, "-o", "run", fails=True))
    assert complaint == "run is not an empty folder; give another folder"
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_an_interrupted_run_is_not_accepted_as_complete(command: Command) -> None:
    class Stop(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "step" and record["step"] == 2:
            raise Stop

    config = AdapterRun.load(None, {"data": {"train": "corpus.txt"}, "training": {"steps": 4}})
    with pytest.raises(Stop):
        train_run(config, AdapterFolder(Path("run")), listener=stop)
    assert not (Path("run") / "summary.json").exists()
    for arguments in (("test", "run"), ("score", "--run", "run")):
        assert (
            refusal(command(*arguments, fails=True)) == "the run in run has not ended, and thus has no trained adapters"
        )
