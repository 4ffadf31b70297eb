"""What a training run costs in hardware operations until it is good enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from ..devices import Session, Usage
from ..nn.attachment import attach
from ..nn.health import StaleGradientWarning
from ..training import RunConfig
from ..training.fit import Fit
from ..training.plan import usage_by_purpose
from ..training.setup import make_devices, make_task
from .methods import best_step, parse_method

__all__ = ["Efficiency", "Race", "efficiency"]

Point = tuple[int, int, int, float]
"""Epoch, programs and vectors so far, and test accuracy."""

# The published method gets this many times the epochs of the others.
_EPOCHS = 10


@dataclass(frozen=True, slots=True)
class Race:
    """One run towards a target.

    Attributes:
        device: registered name.
        impairments: its preset.
        method: what `parse_method` takes.
        seed: of weights, data order, chip and estimator.
        target: test accuracy to reach.
        epochs: the most to run.
        task: what to train.
        in_features: of the device layer.
        out_features: of the device layer.
        batch: vectors a step.
        samples: perturbations a step, for those that perturb; None for the method's own.
        step: of the perturbations, in control units; None for the method's own.
    """

    device: str
    impairments: str
    method: str
    seed: int
    target: float
    epochs: int
    task: str = "digits"
    in_features: int = 256
    out_features: int = 128
    batch: int = 50
    samples: int | None = None
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How a race went.

    Attributes:
        race: which.
        curve: epoch by epoch, up to the one in which the target was reached.
        outdone: given up before, with more programs and more vectors spent than can matter; see `efficiency`.
    """

    race: Race
    curve: tuple[Point, ...]
    outdone: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target was."""
        return self.curve[-1][3] >= self.race.target

    def record(self) -> dict[str, Any]:
        """One flat record: what was spent up to the target or, where it was not reached, in all."""
        epochs, programs, vectors, _ = self.curve[-1]
        race = self.race
        return {
            "task": race.task,
            "device": race.device,
            "impairments": race.impairments,
            "method": race.method,
            "samples": race.samples,
            "step": race.step,
            "seed": race.seed,
            "target": race.target,
            "reached": self.reached,
            "epochs": epochs,
            "programs": programs,
            "vectors": vectors,
            "outdone": self.outdone,
            "best_accuracy": max(accuracy for *_, accuracy in self.curve),
        }


def efficiency(
    devices: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    impairments: str = "lab",
    target: float = 0.975,
    patience: float = 100.0,
    epochs: int = 10,
    samples: Sequence[int] = (1, 10, 100),
    task: str = "digits-deep",
    size: tuple[int, int] = (256, 128),
    jobs: int = 1,
    listener: Callable[[Efficiency, int], None] | None = None,
) -> list[Efficiency]:
    """Train digits through each device by each method, and count what it takes to reach the target.

    The test accuracy is looked at after every epoch, at no charge. The published method gets ten times the epochs
    of the others, each of the numbers of samples, and the step that suits the device best. A race is given up when
    it has spent more than another number of samples needed for the same method, device and seed, or ``patience``
    times as much as another method needed, both of programs and of vectors.

    Args:
        devices: registered names.
        methods: see `parse_method`.
        seeds: a run for each.
        impairments: of the simulated devices.
        target: test accuracy.
        patience: how many times another method's spending is waited for.
        epochs: the most to run; ten times as many for ``"paper"``.
        samples: perturbations a step of ``"paper"``.
        task: what to train.
        size: inputs and outputs of the device layer.
        jobs: runs at a time, each in a process of its own; what a notebook has registered is known with 1 only.
        listener: told every result as it comes, and how many races there are.

    Raises:
        ConfigurationError, DeviceError: before anything is run.
    """
    for method in methods:
        parse_method(method)
    heats = []
    for device in devices:
        step = best_step(device, impairments, size, batch=50) if "paper" in methods else None
        for seed in seeds:
            races: list[Race] = []
            for method in methods:
                race = Race(device, impairments, method, seed, target, epochs, task, *size)
                if method == "paper":
                    longer = replace(race, step=step, epochs=_EPOCHS * epochs)
                    races += [replace(longer, samples=count) for count in samples]
                else:
                    races.append(race)
            heats.append((tuple(races), patience))
    total = sum(len(heat) for heat, _ in heats)
    results = []
    for heat in _run(heats, jobs):
        for result in heat:
            results.append(result)
            if listener is not None:
                listener(result, total)
    return results


Heat = tuple[tuple[Race, ...], float]
"""Races of one device and seed, one after the other, and how many times another method's spending is waited for."""


def _run(heats: Sequence[Heat], jobs: int) -> Iterable[list[Efficiency]]:
    if jobs == 1:
        yield from map(_heat, heats)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(_heat, heats)


def _heat(heat: Heat) -> list[Efficiency]:
    races, patience = heat
    results: list[Efficiency] = []
    for race in races:
        limits = []
        for other in results:
            if other.reached:
                _, programs, vectors, _ = other.curve[-1]
                factor = 1.0 if other.race.method == race.method else patience
                limits.append((factor * programs, factor * vectors))
        results.append(_race(race, limits))
    return results


def _race(race: Race, limits: Sequence[tuple[float, float]]) -> Efficiency:
    options = {key: value for key in ("samples", "step") if (value := getattr(race, key)) is not None}
    config = RunConfig.model_validate(
        {
            "task": race.task,
            "seed": race.seed,
            "epochs": race.epochs,
            "batch_size": race.batch,
            "in_features": race.in_features,
            "out_features": race.out_features,
            "device": {"name": race.device, "impairments": race.impairments},
        }
    )
    task = make_task(config)
    curve: list[Point] = []
    with ExitStack() as stack, warnings.catch_warnings():
        # That a surrogate is poor shows in the result.
        warnings.simplefilter("ignore", StaleGradientWarning)
        devices = make_devices(config, task)
        sessions = {name: stack.enter_context(Session(device)) for name, device in devices.items()}
        model = attach(task.model(race.seed), sessions, seed=race.seed, **parse_method(race.method), **options)
        fit = Fit(config, task, task.splits(), model)
        for record in fit.run():
            if record["event"] == "epoch":
                by_purpose = usage_by_purpose(sessions.values())
                spent = sum(by_purpose.values(), Usage()) - by_purpose.get("evaluation", Usage())
                curve.append((record["epoch"], spent.programs, spent.vectors, record["test_accuracy"]))
                if curve[-1][3] >= race.target:
                    break
                if any(spent.programs > programs and spent.vectors > vectors for programs, vectors in limits):
                    return Efficiency(race, tuple(curve), outdone=True)
    return Efficiency(race, tuple(curve))
