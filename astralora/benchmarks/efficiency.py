"""Count the hardware operations that a training needs to reach a test accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import get_context
from typing import Any

import torch

from ..devices import Purpose, Session, Usage
from ..nn.attachment import attach
from ..nn.health import StaleGradientWarning
from ..training import RunConfig
from ..training.fit import Fit
from ..training.plan import usage_by_purpose
from ..training.setup import make_devices, make_task
from .methods import best_step, parse_method

__all__ = ["Efficiency", "EfficiencyCase", "efficiency"]

Point = tuple[int, int, int, float]
"""Epoch, programs and vectors so far, and test accuracy."""

# Factor on the epochs of the published method.
_EPOCHS = 10


@dataclass(frozen=True, slots=True)
class EfficiencyCase:
    """Describe one training until a target accuracy.

    Attributes:
        device: name of a registered device.
        impairments: preset of the device.
        method: name for `parse_method`.
        seed: seed of weights, data order, chip and estimator.
        target: test accuracy to reach.
        epochs: largest number of epochs.
        task: name of the task.
        in_features: inputs of the device layer.
        out_features: outputs of the device layer.
        batch: vectors per step.
        samples: perturbations per step, for methods that perturb; None for the method's default.
        step: size of a perturbation, in control units; None for the method's default.
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
    """Hold the result of one training.

    Attributes:
        case: description of the training.
        curve: points epoch by epoch, up to the epoch that reached the target.
        outdone: whether the training was stopped because another one needed fewer operations; see `efficiency`.
    """

    case: EfficiencyCase
    curve: tuple[Point, ...]
    outdone: bool = False

    @property
    def reached(self) -> bool:
        """Return whether the target was reached."""
        return self.curve[-1][3] >= self.case.target

    def record(self) -> dict[str, Any]:
        """Return a flat record, with the operations up to the target, or all operations if it was not reached."""
        epochs, programs, vectors, _ = self.curve[-1]
        case = self.case
        return {
            "task": case.task,
            "device": case.device,
            "impairments": case.impairments,
            "method": case.method,
            "samples": case.samples,
            "step": case.step,
            "seed": case.seed,
            "target": case.target,
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
    """Train digits through each device by each method, and count the operations up to the target accuracy.

    The test accuracy is evaluated after every epoch, and evaluations are not counted. The published method gets ten
    times the epochs of the others, each number of samples, and the best step for the device. A training stops early
    when another number of samples of the same method, device and seed needed fewer programs and fewer vectors, or
    another method needed ``patience`` times fewer of both.

    Args:
        devices: names of registered devices.
        methods: names for `parse_method`.
        seeds: seeds of the runs.
        impairments: preset of the simulated devices.
        target: test accuracy to reach.
        patience: factor on the operations of another method before a training stops early.
        epochs: largest number of epochs; ten times as many for ``"paper"``.
        samples: perturbations per step of ``"paper"``.
        task: name of the task.
        size: inputs and outputs of the device layer.
        jobs: number of parallel processes; with more than 1, devices registered in a notebook are unknown.
        listener: called with every result and the number of results in all.

    Raises:
        ConfigurationError, DeviceError: a name is invalid; nothing is run.
    """
    for method in methods:
        parse_method(method)
    groups = []
    for device in devices:
        step = best_step(device, impairments, size, batch=50) if "paper" in methods else None
        for seed in seeds:
            cases = [
                EfficiencyCase(device, impairments, method, seed, target, epochs, task, *size) for method in methods
            ]
            groups.append((tuple(chain.from_iterable(_variants(case, samples, step) for case in cases)), patience))
    total = sum(len(group) for group, _ in groups)
    results = []
    for group in _run(groups, jobs):
        for result in group:
            results.append(result)
            if listener is not None:
                listener(result, total)
    return results


def _variants(case: EfficiencyCase, samples: Sequence[int], step: float | None) -> list[EfficiencyCase]:
    """Return the cases of a method: one for each number of samples of the published method, else one."""
    if case.method != "paper":
        return [case]
    longer = replace(case, step=step, epochs=_EPOCHS * case.epochs)
    return [replace(longer, samples=count) for count in samples]


Group = tuple[tuple[EfficiencyCase, ...], float]
"""Cases of one device and seed in the order in which they run, and the patience."""


def _run(groups: Sequence[Group], jobs: int) -> Iterable[list[Efficiency]]:
    """Run all groups, in parallel processes if there are several jobs."""
    if jobs == 1:
        yield from map(_train_group, groups)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(_train_group, groups)


def _train_group(group: Group) -> list[Efficiency]:
    """Run the cases of a group one after the other; earlier results limit the operations of later ones."""
    cases, patience = group
    results: list[Efficiency] = []
    for case in cases:
        limits = []
        for other in results:
            if other.reached:
                _, programs, vectors, _ = other.curve[-1]
                factor = 1.0 if other.case.method == case.method else patience
                limits.append((factor * programs, factor * vectors))
        results.append(_train(case, limits))
    return results


def _train(case: EfficiencyCase, limits: Sequence[tuple[float, float]]) -> Efficiency:
    """Run one case until it reaches the target or a limit."""
    options = {key: value for key in ("samples", "step") if (value := getattr(case, key)) is not None}
    config = RunConfig.model_validate(
        {
            "task": case.task,
            "seed": case.seed,
            "epochs": case.epochs,
            "batch_size": case.batch,
            "in_features": case.in_features,
            "out_features": case.out_features,
            "device": {"name": case.device, "impairments": case.impairments},
        }
    )
    task = make_task(config)
    curve: list[Point] = []
    with ExitStack() as stack, warnings.catch_warnings():
        # The result shows whether a surrogate is poor.
        warnings.simplefilter("ignore", StaleGradientWarning)
        devices = make_devices(config, task)
        sessions = {name: stack.enter_context(Session(device)) for name, device in devices.items()}
        model = attach(task.model(case.seed), sessions, seed=case.seed, **parse_method(case.method), **options)
        fit = Fit(config, task, task.splits(), model)
        for record in fit.run():
            if record["event"] == "epoch":
                by_purpose = usage_by_purpose(sessions.values())
                spent = sum(by_purpose.values(), Usage()) - by_purpose.get(Purpose.EVALUATION, Usage())
                curve.append((record["epoch"], spent.programs, spent.vectors, record["test_accuracy"]))
                if curve[-1][3] >= case.target:
                    break
                if any(spent.programs > programs and spent.vectors > vectors for programs, vectors in limits):
                    return Efficiency(case, tuple(curve), outdone=True)
    return Efficiency(case, tuple(curve))
