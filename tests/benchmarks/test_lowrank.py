"""Test the benchmark of low-rank training at a small size."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn, optim
from typer.testing import CliRunner

from astralora import benchmarks
from astralora.benchmarks.lowrank import LOWRANK, Adam, LowRankMethod
from astralora.cli.app import app
from astralora.common.errors import ConfigurationError
from astralora.tasks import BYTES, topics

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def test_the_text_is_english_in_three_parts_that_do_not_overlap() -> None:
    text = topics()
    whole = sum(map(len, text))
    assert whole > 300_000
    assert len(text.train) == pytest.approx(0.8 * whole, abs=1)
    assert len(text.validation) == pytest.approx(0.1 * whole, abs=1)
    assert all(0 <= int(part.min()) <= int(part.max()) < BYTES for part in text)
    assert bytes(text.test.tolist()).decode(errors="replace").count(" the ") > 100


def test_every_method_chooses_among_as_many_rates_on_the_tuning_seed() -> None:
    pytest.importorskip("transformers")
    totals: list[int] = []
    records = benchmarks.lowrank(
        ["adam", "flora"], [0, 1], steps=2, width=16, layers=1, listener=lambda _, total: totals.append(total)
    )
    assert totals == [10] * 10
    for name in ("adam", "flora"):
        mine = [record for record in records if record["method"] == name]
        tuning, runs = ([record for record in mine if record["part"] == part] for part in ("tuning", "run"))
        assert [record["rate"] for record in tuning] == list(LOWRANK.find(name).rates)
        best = min(tuning, key=lambda record: record["validation_loss"])
        assert [(record["rate"], record["seed"]) for record in runs] == [(best["rate"], 0), (best["rate"], 1)]
        assert best["seed"] not in (0, 1)
    assert len({len(LOWRANK.find(name).rates) for name in ("adam", "flora", "flora-8bit", "flora-published")}) == 1
    assert benchmarks.lowrank_png(records)[:4] == b"\x89PNG"


@pytest.fixture
def one_rate_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only the rate that the complete benchmark chooses for most methods."""
    monkeypatch.setattr(LowRankMethod, "rates", (4e-3,))


@pytest.mark.usefixtures("one_rate_each")
@pytest.mark.parametrize(("steps", "layers"), [(80, 1), pytest.param(100, 2, marks=pytest.mark.campaign)])
def test_flora_learns_text_as_adam_does_with_less_than_a_quarter_of_the_state(steps: int, layers: int) -> None:
    pytest.importorskip("transformers")
    records = benchmarks.lowrank(["adam", "flora"], [0], steps=steps, layers=layers)
    adam, flora = (record for record in records if record["part"] == "run")
    shares = torch.bincount(topics().test, minlength=BYTES) / len(topics().test)
    # The loss of Adam is below the entropy of single bytes.
    assert adam["test_loss"] < float(torch.special.entr(shares).sum())
    assert flora["test_loss"] < 1.1 * adam["test_loss"]
    assert flora["state_bytes"] < adam["state_bytes"] / 4


@pytest.mark.usefixtures("one_rate_each")
def test_eight_bits_take_less_state() -> None:
    pytest.importorskip("transformers")
    records = benchmarks.lowrank(["flora", "flora-8bit"], [0], steps=1)
    (flora, codes) = (record["state_bytes"] for record in records if record["part"] == "run")
    assert codes < flora / 3


def test_a_registered_method_is_benchmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    rates: list[float] = []

    class Mine(Adam):
        rates = (1e-3,)

        def make_optimizer(self) -> optim.Optimizer:
            assert isinstance(self.model, nn.Module)
            return optim.SGD(self.model.parameters(), lr=self.rate)

        def after_step(self) -> None:
            rates.append(self.rate)

    monkeypatch.setattr(LOWRANK, "_classes", {name: LOWRANK.find(name) for name in LOWRANK})
    LOWRANK.add("mine", Mine)
    records = benchmarks.lowrank(["mine"], [5], steps=3, width=16, layers=1)
    assert rates == [1e-3] * 3 * 2
    assert [record["state_bytes"] for record in records] == [0, 0]


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no low-rank method named 'sgd'; known are adam, flora"):
        benchmarks.lowrank(["sgd"], [0])
    with pytest.raises(ConfigurationError, match="must be a multiple of 16, and 20 is not"):
        benchmarks.lowrank(["adam"], [0], width=20)


def test_the_command_writes_records_and_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    arguments = ["--method", "adam", "--seeds", "0", "--steps", "1", "--width", "16", "--layers", "1", "--out", "it"]
    with contextlib.chdir(tmp_path):
        run = CliRunner().invoke(app, ["bench", "lowrank", *arguments])
    assert run.exit_code == 0, run.output
    assert "state bytes" in run.stdout
    records = json.loads((tmp_path / "it" / "lowrank.json").read_text())
    assert {record["part"] for record in records} == {"tuning", "run"}
    assert (tmp_path / "it" / "lowrank.png").exists()
