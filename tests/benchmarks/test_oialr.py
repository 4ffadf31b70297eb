"""Test OIALR in the benchmark of low-rank training."""

from typing import Any

import pytest

from astralora import benchmarks
from astralora.benchmarks.lowrank import LOWRANK, LowRankMethod, OialrAdam

pytest.importorskip("transformers")


def run(monkeypatch: pytest.MonkeyPatch, *methods: str, rate: float = 4e-3, **options: Any) -> dict[str, Any]:
    monkeypatch.setattr(LowRankMethod, "rates", (rate,))
    records = benchmarks.lowrank(methods, [0], **{"steps": 15, "width": 32, "layers": 1, **options})
    return {record["method"]: record for record in records if record["part"] == "run"}


@pytest.mark.parametrize("method", ["oialr", "oialr-flora"])
def test_fewer_parameters_are_trained_and_the_total_includes_bases(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(monkeypatch, "adam", method)
    adam, ours = found["adam"], found[method]
    assert adam["parameters"] == adam["trainable"] == adam["total"] == ours["parameters"]
    # Four matrices of 32 x 32, and two of 32 x 128, become cores of at most 32 x 32, by bases of at most 32 columns.
    most = adam["trainable"] - 2 * (32 * 128 - 32 * 32)
    assert ours["trainable"] < most
    assert ours["trainable"] < ours["total"] <= most + 2 * 4 * 32 * 32 + 2 * (32 + 128) * 32
    assert ours["state_bytes"] < adam["state_bytes"]


def test_nothing_is_cut_before_two_thirds_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = []

    class Watched(OialrAdam):
        def after_step(self) -> None:
            super().after_step()
            trainable.append(sum(p.numel() for p in self.model.parameters() if p.requires_grad))

    monkeypatch.setattr(LOWRANK, "_classes", {"oialr": Watched})
    run(monkeypatch, "oialr")
    of_one_run = trainable[:15]
    assert of_one_run[:9] == [of_one_run[0]] * 9
    assert of_one_run[9] < of_one_run[8]
    assert of_one_run == sorted(of_one_run, reverse=True)


def test_a_learning_rate_of_0_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # A cut changes the weights by itself, so all ranks are kept.
    monkeypatch.setattr("astralora.lowrank.oialr.kept_rank", lambda s, *_: len(s))
    found = run(monkeypatch, "adam", "oialr", rate=0.0)
    assert found["oialr"]["test_loss"] == pytest.approx(found["adam"]["test_loss"], abs=1e-5)
    assert found["oialr"]["trainable"] < found["adam"]["trainable"]
