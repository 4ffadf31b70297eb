"""Test benchmarks: the operations that they count, and methods that a notebook registers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora import benchmarks
from astralora.benchmarks.methods import best_step, parse_method
from astralora.common.table import Table


@pytest.fixture
def restored_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the methods that a test registers."""
    for table in (al.estimators.ESTIMATORS, al.surrogates.SURROGATES):
        assert isinstance(table, Table)
        monkeypatch.setattr(table, "_classes", {name: table.find(name) for name in table})


class Guess(al.Estimator):
    """Estimate along one random direction."""

    def estimate(
        self, session: al.Session, controls: Tensor, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor
    ) -> Tensor:
        direction = torch.randn(controls.shape, generator=self.generator, dtype=controls.dtype)
        low, high = session.spec.control_range or (-1.0, 1.0)
        moved = (controls + 0.1 * direction).clamp(low, high)
        change = ((session.apply(moved, inputs) - outputs) * grad_outputs).sum()
        return direction * change / 0.1


class Frozen(al.Surrogate):
    """Keep the matrix of the start."""

    def start(self, session: al.Session, controls: Tensor) -> None:
        self.matrix = session.query(torch.eye(session.spec.in_features, dtype=controls.dtype)).mT

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        return grad_outputs @ self.matrix


@pytest.mark.usefixtures("restored_tables", "a_throwaway_global_random_state")
def test_registered_estimators_and_surrogates_work_in_attach_and_benchmarks() -> None:
    al.register_estimator("guess", Guess)
    al.register_surrogate("frozen", Frozen)
    device = al.open_device("matvec", in_features=8, out_features=6)
    net = al.attach(
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6)), {"1": device}, estimator="guess", surrogate="frozen"
    )
    net(torch.randn(3, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    methods = ["guess+frozen", "guess", "frozen"]
    found = benchmarks.fidelity(["matvec"], methods, [8], [0], impairments="ideal", batch=4)
    assert {record["method"] for record in found} == set(methods)
    assert found[0]["programs"] == 2
    assert found[0]["cosine_inputs"] == pytest.approx(1, abs=1e-5)
    assert len(benchmarks.overhead(["matvec"], ["guess+frozen"], [8], batch=4, cycles=1)) == 1
    results = benchmarks.efficiency(["slm"], ["guess+frozen"], [0], task="digits", size=(16, 8), epochs=1)
    assert results[0].record()["programs"] > 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", {"method": "auto"}),
        ("orthogonal", {"estimator": "orthogonal", "surrogate": "online"}),
        ("coloured", {"estimator": "coloured", "surrogate": "measured"}),
        ("online", {"surrogate": "online"}),
        ("gaussian+psi", {"estimator": "gaussian", "surrogate": "psi"}),
    ],
)
def test_method_names_are_parsed(name: str, expected: dict[str, str]) -> None:
    assert parse_method(name) == expected


def test_the_best_step_is_no_smaller_than_a_level_and_better_than_its_neighbours() -> None:
    step = best_step("slm", "lab", (16, 8), batch=20)
    level = al.make_device("slm", in_features=16, out_features=8, impairments="lab").spec.control_step
    assert level is not None
    assert step is not None
    assert level <= step <= 6.3 / 8 + 1e-9


def test_efficiency_counts_the_operations_up_to_the_target() -> None:
    (result,) = benchmarks.efficiency(["slm"], ["auto"], [0], task="digits", size=(32, 16), target=0.3, epochs=5)
    record = result.record()
    assert record["reached"]
    assert record["epochs"] == len(result.curve) <= 5
    steps = 29 * record["epochs"]
    # One program per step, another one every eight steps, and one at startup; evaluations are not counted.
    assert steps < record["programs"] < 1.2 * steps
    assert record["vectors"] > 1437 * record["epochs"]


def test_the_published_method_stops_early_when_it_has_spent_too_much() -> None:
    results = benchmarks.efficiency(
        ["slm"], ["auto", "paper"], [0], task="digits", size=(16, 8), target=0.15, patience=1.0, epochs=2, samples=(3,)
    )
    auto, paper = results
    assert auto.reached
    assert paper.case.epochs == 20
    assert paper.reached or paper.outdone


@pytest.mark.parametrize(("device", "methods"), [("slm", ["auto"]), ("mrr", ["auto"]), ("matvec", ["auto"])])
def test_auto_comes_within_a_cosine_of_099_with_two_programs_on_lab_chips(device: str, methods: list[str]) -> None:
    records = benchmarks.fidelity([device], methods, [64], [0, 1])
    assert [record["programs"] for record in records] == [2, 2]
    assert min(record["cosine_controls"] for record in records) >= 0.99


def test_online_input_gradients_are_good_within_an_epoch_from_a_cold_start() -> None:
    records = benchmarks.fidelity(["slm"], ["online"], [64], [0], samples=(1,))
    (after,) = [record for record in records if record["data"] == "digits"]
    assert after["cosine_inputs"] >= 0.99


def test_orthogonal_directions_agree_with_theory() -> None:
    # A mesh of 12 controls, so 6 perturbations cover half of the directions.
    records = benchmarks.fidelity(
        ["mzi"], ["orthogonal", "gaussian"], [4], range(30), impairments="ideal", samples=(6,)
    )
    for method in ("orthogonal", "gaussian"):
        chosen = [record for record in records if record["method"] == method and record["data"] == "uniform"]
        assert len(chosen) == 30
        square = torch.tensor([record["cosine_controls"] ** 2 for record in chosen])
        predicted = torch.tensor([record["predicted_controls"] ** 2 for record in chosen])
        assert float((square - predicted).mean()) == pytest.approx(0, abs=4 * float(square.std()) / 30**0.5)


def test_a_ratio_is_of_two_positive_times() -> None:
    records: list[dict[str, Any]] = benchmarks.overhead(["slm"], ["auto", "exact"], [8], batch=4, cycles=1)
    assert [record["impairments"] for record in records] == ["lab", "ideal"]
    assert all(record["ratio_to_linear"] > 0 for record in records)


@pytest.mark.parametrize("factor", [3, pytest.param(10, marks=pytest.mark.campaign)])
def test_auto_needs_a_fraction_of_the_published_method(factor: int) -> None:
    auto, paper = benchmarks.efficiency(["mrr"], ["auto", "paper"], [0], samples=(1,), patience=factor)
    assert auto.reached
    assert not paper.reached
    assert paper.outdone
    (_, programs, vectors, _), (_, theirs, their_vectors, _) = auto.curve[-1], paper.curve[-1]
    assert theirs > factor * programs
    assert their_vectors > factor * vectors
