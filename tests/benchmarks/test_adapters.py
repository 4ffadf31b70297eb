"""Test the benchmark of adapters at a small size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from astralora import benchmarks
from astralora.adapters import AdaptedModel, adapt
from astralora.benchmarks.adapter_methods import ADAPTER_METHODS, AdapterMethod, Dynamic
from astralora.cli.app import app
from astralora.common.errors import ConfigurationError
from astralora.tasks import BYTES, sources

pytest.importorskip("peft")

TINY: dict[str, Any] = {"steps": 3, "pretraining": 2, "width": 16, "layers": 1}


@pytest.fixture
def one_rate_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterMethod, "rates", (1e-2,))


def test_the_sources_are_python_in_three_parts() -> None:
    text = sources()
    assert sum(map(len, text)) > 500_000
    assert all(0 <= int(part.min()) <= int(part.max()) < BYTES for part in text)
    assert bytes(text.test.tolist()).count(b"\n    def ") > 50


@pytest.mark.usefixtures("one_rate_each")
def test_all_methods_train_as_many_parameters_at_any_time() -> None:
    records = benchmarks.adapters(list(ADAPTER_METHODS), [0], rank=5, **{**TINY, "layers": 2})
    found = {record["method"]: record for record in records if record["part"] == "run"}
    uniform = found.pop("uniform")
    # A quarter of twelve LoRA and seven shortcuts is five, each of rank 5 between 16 and 16, or 2 between 16 and 64.
    assert 5 * (16 + 16) == 2 * (16 + 64)
    budget = 5 * 5 * (16 + 16)
    for name in ("dynamic", "dynamic-lora", "static", "random"):
        assert (found[name]["trained_parameters"], found[name]["adapters_on"]) == (budget, 5)
    one = 2 * (4 * (16 + 16) + 2 * (16 + 64))
    assert (uniform["trained_parameters"], uniform["adapters_on"]) == (2 * one, 12), "the lowest rank that reaches it"
    assert one < budget <= 2 * one
    assert len({record["base_loss"] for record in (uniform, *found.values())}) == 1, "all start from the same model"


@pytest.mark.usefixtures("one_rate_each")
def test_random_choice_uses_more_adapters_than_are_enabled_at_a_time() -> None:
    records = benchmarks.adapters(["random", "static"], [0], **{**TINY, "steps": 20})
    chance, static = (record for record in records if record["part"] == "run")
    # Ten draws of two in nine use three or fewer with a probability below (9 choose 3) (3 choose 2)^10 / 36^10.
    assert chance["adapters_used"] > 3
    assert static["adapters_used"] == static["adapters_on"] == 2


@pytest.mark.usefixtures("one_rate_each")
def test_adapters_learn_and_the_rest_of_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[tuple[AdapterMethod, dict[str, torch.Tensor]]] = []

    class Watched(Dynamic):
        def adapt(self, model: nn.Module) -> AdaptedModel:
            adapted = super().adapt(model)
            own = adapted.trained_state()
            models.append((self, {k: v.detach().clone() for k, v in model.named_parameters() if k not in own}))
            return adapted

    monkeypatch.setattr(ADAPTER_METHODS, "_classes", {"watched": Watched})
    record = benchmarks.adapters(["watched"], [], **{**TINY, "steps": 30})[0]
    method, before = models[0]
    after = dict(method.adapted.model.named_parameters())
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert record["test_loss"] < record["base_loss"]


def test_every_method_chooses_among_as_many_rates_on_the_tuning_seed() -> None:
    records = benchmarks.adapters(["uniform", "random"], [0], **TINY)
    for name in ("uniform", "random"):
        tuning = [record for record in records if (record["method"], record["part"]) == (name, "tuning")]
        (run,) = (record for record in records if (record["method"], record["part"]) == (name, "run"))
        assert [record["rate"] for record in tuning] == list(AdapterMethod.rates)
        assert run["rate"] == min(tuning, key=lambda record: record["validation_loss"])["rate"]
        assert all(record["seed"] != 0 for record in tuning)
    assert {ADAPTER_METHODS.find(name).rates for name in ADAPTER_METHODS} == {AdapterMethod.rates}


@pytest.mark.usefixtures("one_rate_each")
def test_the_same_seed_gives_the_same_numbers() -> None:
    once, again = (benchmarks.adapters(["dynamic", "random"], [0], **TINY) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert {**one, "seconds_per_step": 0} == {**other, "seconds_per_step": 0}


def make_records(**losses: list[float]) -> list[dict[str, Any]]:
    common = {"part": "run", "rate": 0.1, "trained_parameters": 10, "adapters_on": 2, "adapters_used": 3}
    return [
        {**common, "method": name, "seed": seed, "test_loss": loss}
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def test_differences_pair_equal_seeds() -> None:
    records = make_records(uniform=[1.0, 2.0, 3.0], dynamic=[1.1, 2.3, 3.2])
    uniform, dynamic = benchmarks.summarize([*records, {**records[0], "part": "tuning", "test_loss": 100.0}])
    # The losses have a standard deviation of 1, and the differences 0.1, 0.3 and 0.2 one of 0.1.
    assert uniform["test_loss"] == 2.0
    assert uniform["standard_error"] == pytest.approx(3**-0.5)
    assert (uniform["difference"], uniform["difference_error"]) == (None, None)
    assert dynamic["difference"] == pytest.approx(0.2)
    assert dynamic["difference_error"] == pytest.approx(0.1 * 3**-0.5)


def test_seeds_of_one_method_alone_are_not_compared() -> None:
    _, dynamic = benchmarks.summarize(make_records(uniform=[1.0, 2.0], dynamic=[1.1, 2.3, 9.0]))
    assert dynamic["seeds"] == 3
    assert dynamic["difference"] == pytest.approx(0.2)
    assert dynamic["difference_error"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        ([1.1, 2.3, 3.2], "Dynamic HeteroLoRA loses to uniform LoRA of the same budget (+0.200 ± 0.058 nats a byte"),
        ([0.9, 1.7, 2.8], "Dynamic HeteroLoRA beats uniform LoRA of the same budget (-0.200 ± 0.058 nats a byte"),
        # The differences are -0.1, 0.3 and -0.1; then -0.3, 0 and 0, with a mean of -0.1 and an error of 0.1.
        ([0.9, 2.3, 2.9], "These seeds do not show whether dynamic HeteroLoRA beats uniform LoRA of the same budget"),
        ([0.7, 2.0, 3.0], "These seeds do not show whether dynamic HeteroLoRA beats uniform LoRA of the same budget"),
        ([0.5], "One seed cannot show whether dynamic HeteroLoRA beats uniform LoRA of the same budget (-0.500"),
    ],
)
def test_the_verdict_requires_two_standard_errors(dynamic: list[float], sentence: str) -> None:
    found = benchmarks.verdict(benchmarks.summarize(make_records(uniform=[1.0, 2.0, 3.0], dynamic=dynamic)))
    assert found is not None
    assert found.startswith(sentence)


def test_there_is_no_verdict_without_a_comparison() -> None:
    assert benchmarks.verdict(benchmarks.summarize(make_records(dynamic=[1.0, 2.0]))) is None
    assert benchmarks.verdict(benchmarks.summarize(make_records(uniform=[1.0, 2.0]))) is None


def test_a_registered_method_is_benchmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Mine(AdapterMethod):
        rates = (1e-3,)

        def adapt(self, base: nn.Module) -> AdaptedModel:
            return adapt(base, {"default": {"r": 2}})

        def before_step(self, step: int) -> None:
            steps.append(step)

    classes = {name: ADAPTER_METHODS.find(name) for name in ADAPTER_METHODS}
    monkeypatch.setattr(ADAPTER_METHODS, "_classes", classes)
    ADAPTER_METHODS.add("mine", Mine)
    records = benchmarks.adapters(["mine"], [5], **TINY)
    assert steps == [0, 1, 2] * 2
    assert [record["adapters_on"] for record in records] == [9, 9]


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no adapter method named 'best'; known are uniform, dynamic"):
        benchmarks.adapters(["best"], [0])
    with pytest.raises(ConfigurationError, match="must be a multiple of 16, and 20 is not"):
        benchmarks.adapters(["uniform"], [0], width=20)
    with pytest.raises(ConfigurationError, match="so that all adapters cost the same; 8 is not"):
        benchmarks.adapters(["uniform"], [0], rank=8)
    with pytest.raises(ConfigurationError, match=r"turn_on must be more than 0 and at most 1, not 0\.0"):
        benchmarks.adapters(["uniform"], [0], turn_on=0.0)


def test_the_command_refuses_an_unknown_method_in_one_sentence() -> None:
    run = CliRunner().invoke(app, ["bench", "adapters", "--method", "best", "--seeds", "0"])
    assert run.exit_code != 0
    assert "there is no adapter method named 'best'; known are uniform, dynamic" in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


@pytest.mark.usefixtures("one_rate_each")
def test_the_command_writes_records_and_a_plot_and_prints_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--{name}={value}" for name, value in TINY.items()]
    run = CliRunner().invoke(
        app, ["bench", "adapters", "--method", "uniform,dynamic", "--seeds", "0,1", *options, "-o", "b"]
    )
    assert run.exit_code == 0, run.stderr
    assert "over uniform" in run.stdout
    summary = json.loads(Path("b/summary.json").read_text())
    assert summary["verdict"] in run.stdout
    assert [row["method"] for row in summary["rows"]] == ["uniform", "dynamic"]
    records = json.loads(Path("b/adapters.json").read_text())
    assert [record["part"] for record in records] == ["tuning", "run", "run"] * 2
    assert Path("b/adapters.png").read_bytes().startswith(b"\x89PNG")
