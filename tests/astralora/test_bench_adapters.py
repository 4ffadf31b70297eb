"""The benchmark of adapters, as small as it can be."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from astralora import benchmarks
from astralora.adapters import AdaptedModel, adapt
from astralora.benchmarks.adapters import ADAPTER_METHODS, AdapterMethod
from astralora.cli.app import app
from astralora.errors import ConfigurationError
from astralora.tasks import BYTES, sources

pytest.importorskip("peft")

TINY: dict[str, Any] = {"steps": 3, "pretraining": 2, "width": 16, "layers": 1}


@pytest.fixture
def one_rate_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterMethod, "rates", (1e-2,))


def test_the_code_is_python_in_three_parts() -> None:
    text = sources()
    assert sum(map(len, text)) > 500_000
    assert all(0 <= int(part.min()) <= int(part.max()) < BYTES for part in text)
    assert bytes(text.test.tolist()).count(b"\n    def ") > 50


@pytest.mark.usefixtures("one_rate_each")
def test_budgets_are_alike() -> None:
    records = benchmarks.adapters(["uniform", "dynamic", "static"], [0], turn_on=0.4, **TINY)
    found = {record["method"]: record for record in records if record["part"] == "run"}
    # Of nine adapters of a layer, each of width 16 but two of 16 to 64, at rank 8.
    narrow, wide = 8 * (16 + 16), 8 * (16 + 64)
    share = 0.4 * (7 * narrow + 2 * wide)
    one = (4 * narrow + 2 * wide) / 8
    uniform = found["uniform"]
    assert uniform["adapters_on"] == 6
    assert share <= uniform["trained_parameters"] < share + one, "the least rank that comes to the share"
    for name in ("dynamic", "static"):
        assert found[name]["adapters_on"] == round(0.4 * 9)
        assert found[name]["trained_parameters"] in {(4 - k) * narrow + k * wide for k in range(3)}
    assert len({record["base_loss"] for record in found.values()}) == 1, "all begin with the same model"


@pytest.mark.usefixtures("one_rate_each")
def test_the_same_seed_gives_the_same_numbers() -> None:
    once, again = (benchmarks.adapters(["dynamic", "random"], [0], **TINY) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert {**one, "seconds_per_step": 0} == {**other, "seconds_per_step": 0}


def made_up(**losses: list[float]) -> list[dict[str, Any]]:
    return [
        {"part": "run", "method": name, "seed": seed, "rate": 0.1, "trained_parameters": 10.0, "test_loss": loss}
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def test_differences_are_those_of_the_same_seeds() -> None:
    uniform, dynamic = benchmarks.compare(made_up(uniform=[1.0, 2.0, 3.0], dynamic=[1.1, 2.3, 3.2]))
    # Deviations of 1 over the root of 3; of the differences 0.1, 0.3 and 0.2, 0.1 over it.
    assert uniform["test_loss"] == 2.0
    assert uniform["error"] == pytest.approx(3**-0.5)
    assert (uniform["difference"], uniform["difference_error"]) == (None, None)
    assert dynamic["difference"] == pytest.approx(0.2)
    assert dynamic["difference_error"] == pytest.approx(0.1 * 3**-0.5)


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        ([1.1, 2.3, 3.2], "'dynamic' does not beat uniform LoRA of the same budget: it is worse by 0.200 ± 0.058"),
        ([0.9, 1.7, 2.8], "'dynamic' beats uniform LoRA of the same budget by 0.200 ± 0.058"),
        ([0.9, 2.3, 2.9], "These seeds do not tell whether 'dynamic' beats uniform LoRA"),
        ([0.5], "One seed does not tell whether 'dynamic' beats uniform LoRA"),
    ],
)
def test_the_verdict_goes_by_two_standard_errors(dynamic: list[float], sentence: str) -> None:
    found = benchmarks.verdict(benchmarks.compare(made_up(uniform=[1.0, 2.0, 3.0], dynamic=dynamic)))
    assert found is not None
    assert sentence in found


def test_there_is_no_verdict_on_what_was_not_compared() -> None:
    assert benchmarks.verdict(benchmarks.compare(made_up(dynamic=[1.0, 2.0]))) is None
    assert benchmarks.verdict(benchmarks.compare(made_up(uniform=[1.0, 2.0]))) is None


def test_a_method_of_ones_own_joins_in(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Mine(AdapterMethod):
        rates = (1e-3,)

        def adapt(self, base: nn.Module) -> AdaptedModel:
            return adapt(base, {"default": {"r": 2}})

        def before_step(self, step: int) -> None:
            steps.append(step)

    monkeypatch.setattr(ADAPTER_METHODS, "_classes", {**ADAPTER_METHODS._classes})  # type: ignore[attr-defined]
    ADAPTER_METHODS.add("mine", Mine)
    records = benchmarks.adapters(["mine"], [5], **TINY)
    assert steps == [0, 1, 2] * 2
    assert [record["adapters_on"] for record in records] == [9, 9]


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no adapter method named 'best'; known are uniform, dynamic"):
        benchmarks.adapters(["best"], [0])
    with pytest.raises(ConfigurationError, match="must be a multiple of 16, and 20 is not"):
        benchmarks.adapters(["uniform"], [0], width=20)


@pytest.mark.usefixtures("one_rate_each")
def test_the_command_leaves_records_and_a_picture_and_says_who_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--{name}={value}" for name, value in TINY.items()]
    run = CliRunner().invoke(
        app, ["bench", "adapters", "--methods", "uniform,random", "--seeds", "0", *options, "-o", "b"]
    )
    assert run.exit_code == 0, run.stderr
    assert "over uniform" in run.stdout
    records = json.loads(Path("b/adapters.json").read_text())
    assert [record["part"] for record in records] == ["tuning", "run"] * 2
    assert Path("b/adapters.png").read_bytes().startswith(b"\x89PNG")
