"""Test the benchmarks of drift and of simulators."""

from statistics import fmean
from typing import Any

import pytest
import torch

from astralora.benchmarks import drift, drift_png, simulators
from astralora.benchmarks.drift import drifting_chip
from astralora.common.errors import ConfigurationError
from astralora.devices import CompensatedDevice, Purpose, Session
from astralora.simulators import SimulatedDevice
from astralora.training import RunConfig, plan
from astralora.training.fit import Fit
from astralora.training.setup import attach_devices, make_devices, make_task

ALL: tuple[Any, ...] = (None, "global", "output", "columns")


def test_every_compensation_is_evaluated_at_all_times_with_its_cost() -> None:
    reported: list[dict[str, Any]] = []
    records = drift([0], size=16, epochs=1, times=(1.0, 100.0), vectors=4, columns=2, listener=reported.append)
    assert records == reported
    kinds = ["none", "global", "output", "columns"]
    expected = [(task, kind, t) for task in ("digits", "digits-normed") for kind in kinds for t in (1.0, 100.0)]
    assert [(r["task"], r["compensation"], r["seconds"]) for r in records] == expected
    assert all(0 <= record["test_accuracy"] <= 1 for record in records)
    for layers, task in ((1, "digits"), (2, "digits-normed")):
        last = {r["compensation"]: r for r in records if (r["task"], r["seconds"]) == (task, 100.0)}
        # One program; references are measured four times after it, and before each of the two evaluations.
        spent = {kind: (r["programs"], r["vectors"], r["columns"]) for kind, r in last.items()}
        asked = (layers, layers * (4 * 4 + 2 * 4), 0)
        assert spent["none"] == (layers, 0, 0)
        assert spent["global"] == spent["output"] == asked
        # 16 inputs take 32 orthogonal vectors.
        assert spent["columns"] == (layers, layers * 32, layers * 2)
        assert last["global"]["hardware_seconds"] == pytest.approx(1e-6 * asked[1])
    assert drift_png(records)[:4] == b"\x89PNG"


def test_all_kinds_have_the_same_conductances_and_exponents(generator: torch.Generator) -> None:
    controls = torch.rand(6 * 8, generator=generator) * 2 - 1
    states = []
    for kind in ALL:
        device: Any = drifting_chip(8, 6, kind, vectors=4, columns=2, seed=5)
        with Session(device) as session:
            assert session.spec.num_controls == 48
            session.program(controls)
            chip: Any = device.session.device if isinstance(device, CompensatedDevice) else device
            chip = chip if isinstance(chip, SimulatedDevice) else chip.device
            states.append((chip.state_dict()["acting"], chip.state_dict()["decay"]["exponents"]))
    for acting, exponents in states[1:]:
        assert torch.equal(acting, states[0][0])
        assert torch.equal(exponents, states[0][1])
    # Cells are written with errors.
    assert not torch.equal(states[0][0][:48], controls)


def test_drift_harms_stored_statistics_and_any_compensation_prevents_it() -> None:
    day, seeds = 86400.0, [0, 1, 2]
    # A rectifier and a linear classifier tolerate a common factor, so one chip is enough.
    records = drift([0], tasks=["digits"], times=(1.0, day)) + drift(seeds, tasks=["digits-normed"], times=(1.0, day))

    def mean(what: str, task: str, kind: str, seconds: float) -> float:
        return fmean(r[what] for r in records if (r["task"], r["compensation"], r["seconds"]) == (task, kind, seconds))

    for task, chips in (("digits", 1), ("digits-normed", len(seeds))):
        # Three standard deviations of the difference of two accuracies near 0.97 over this many images.
        spread = 3 * (2 * 0.97 * 0.03 / (360 * chips)) ** 0.5
        falls = {
            kind: mean("test_accuracy", task, kind, 1.0) - mean("test_accuracy", task, kind, day)
            for kind in ("none", "global", "output", "columns")
        }
        assert (falls.pop("none") > spread) == (task == "digits-normed")
        for kind, fall in falls.items():
            assert fall < spread
            assert mean("output_error", task, kind, day) < 0.6 * mean("output_error", task, "none", day)


def test_an_unknown_task_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="no drift is measured on the task 'mnist'; known are digits, digits-"):
        drift([0], tasks=["digits", "mnist"])


def test_simulators_are_timed_against_a_digital_layer() -> None:
    (record,) = simulators(["slm"], [8], batch=4, repeats=3)
    assert record["multiple"] > 0
    assert record["multiple_of_256"] > 0


@pytest.mark.parametrize("kind", ["output", "columns"])
def test_a_plan_prices_the_references_of_a_run(kind: str) -> None:
    # A batch takes 50 us, so that references are also measured between consecutive queries.
    options = {"device": "matvec", "kind": kind, "every_seconds": 1e-4}
    config = RunConfig.load(
        None,
        {
            "epochs": 1,
            "in_features": 16,
            "out_features": 8,
            "baseline": False,
            "device": {"name": "compensated", "impairments": "lab", "options": options},
        },
    )
    priced = plan(config).total
    task = make_task(config)
    sessions = {name: Session(device) for name, device in make_devices(config, task).items()}
    fit = Fit(config, task, task.splits(), attach_devices(config, task, sessions))
    for _ in fit.run():
        pass
    (session,) = sessions.values()
    paid = session.usage
    assert (paid.programs, paid.queries, paid.vectors) == (priced.programs, priced.queries, priced.vectors)
    # Every program is followed by references: four times sixteen, or 32 orthogonal ones.
    compensated = session.device
    assert isinstance(compensated, CompensatedDevice)
    assert compensated.session.usage_by_purpose[Purpose.DRIFT].vectors >= paid.programs * 32
