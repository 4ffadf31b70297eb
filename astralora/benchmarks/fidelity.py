"""Compare estimated gradients with the exact ones, per hardware operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from .. import surrogates
from ..common.errors import ConfigurationError
from ..devices import Differentiable, Purpose, Session, Usage, derive_generator
from ..estimators import Estimator, Exact, Gaussian, Orthogonal, Rademacher
from ..estimators.base import within
from ..estimators.readout import choose_readout
from ..estimators.zero_order import ZeroOrder
from ..nn.attachment import attach
from ..nn.health import StaleGradientWarning
from ..nn.methods import choose_method
from ..training import RunConfig
from ..training.fit import Fit
from ..training.setup import make_task
from .methods import best_step, cosine, open_chip, parse_method, problem

__all__ = ["Record", "fidelity"]

Record = dict[str, Any]

# Number of random directions for the estimate of the curvature.
_CURVATURE_DIRECTIONS = 64


def fidelity(
    devices: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    *,
    impairments: str = "lab",
    samples: Sequence[int] = (1, 10, 100),
    batch: int = 256,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Compute the cosines of estimated to exact gradients, on new chips and after an epoch of digits.

    With data ``"uniform"``, the gradients belong to a batch of uniform inputs and normal output gradients; the
    surrogate has been started and has observed this batch. With data ``"digits"``, for sizes that the task supports,
    the gradients belong to the last batch of one epoch, and the surrogate starts without measurements if it can.

    Args:
        devices: names of devices with a law (simulators).
        methods: names for `parse_method`; methods that do not suit a device are left out.
        sizes: number of inputs, and of outputs.
        seeds: seeds of chip, problem and estimator.
        impairments: preset of the simulated devices.
        samples: numbers of perturbations, for methods that perturb.
        batch: vectors of the uniform problem.
        listener: called with every record.

    Returns:
        Flat records of device, impairments, size, method, samples, seed, data, programs, vectors, cosine_controls,
        cosine_inputs and predicted_controls. ``programs`` and ``vectors`` count the operations of the gradients,
        without forward pass and startup. ``predicted_controls`` is the theoretical cosine of the control gradients;
        None where there is no theory.
    """
    records = []
    for description, measure in _cases(devices, methods, sizes, seeds, impairments, samples, batch):
        records.append({**description, **measure()})
        if listener is not None:
            listener(records[-1])
    return records


def _cases(
    devices: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    impairments: str,
    samples: Sequence[int],
    batch: int,
) -> Iterator[tuple[Record, Callable[[], Record]]]:
    """Yield the fields that describe each case, and the function that measures it."""
    for device in devices:
        for size in sizes:
            step = best_step(device, impairments, (size, size), batch) if "paper" in methods else None
            for method in methods:
                parsed = parse_method(method)
                session, _ = open_chip(device, impairments, (size, size), seed=0)
                try:
                    estimator, surrogate = choose_method(session, **parsed)
                except ConfigurationError:
                    continue  # the method does not suit this device
                description = {"device": device, "impairments": impairments, "size": size, "method": method}
                for count in samples if isinstance(estimator, ZeroOrder) else (None,):
                    options = dict(parsed)
                    if count is not None:
                        options |= {"samples": count}
                    if step is not None and method == "paper":
                        options |= {"step": step}
                    for seed in seeds:
                        case = {**description, "samples": count, "seed": seed}
                        yield case, partial(_at_start, case, options, batch)
                if "start" in signature(type(surrogate)).parameters and size % 16 == 0:
                    for seed in seeds:
                        case = {**description, "samples": None, "seed": seed}
                        yield case, partial(_after_an_epoch, case, parsed)


def _at_start(case: Record, options: dict[str, Any], batch: int) -> Record:
    """Measure the gradients of a new chip."""
    seed, size = case["seed"], (case["size"], case["size"])
    session, controls = open_chip(case["device"], case["impairments"], size, seed)
    estimator, surrogate = choose_method(session, seed=seed, **options)
    inputs, outputs, grad_outputs = problem(session, controls, batch, seed)
    surrogate.start(session, controls)
    surrogate.observe(inputs, outputs)
    session.program(controls.flip(0))  # the session then counts the program of the controls
    before = session.usage
    session.program(controls)
    surrogate.prepare(session, grad_outputs)
    estimate = estimator.estimate(session, controls, inputs, outputs, grad_outputs)
    spent = session.usage - before
    if estimator.transfer_matrix is not None:
        surrogate.adopt(estimator.transfer_matrix)
    surrogate.recall(inputs)
    gradient = surrogate.vjp(grad_outputs)
    truth = Exact().estimate(session, controls, inputs, outputs, grad_outputs)
    predicted = _predicted(estimator, session, truth, controls, (inputs, outputs, grad_outputs))
    return {
        "data": "uniform",
        "programs": spent.programs,
        "vectors": spent.vectors,
        "cosine_controls": cosine(estimate, truth),
        "cosine_inputs": cosine(gradient, _true_inputs(session, controls, inputs, grad_outputs)),
        "predicted_controls": predicted,
    }


def _predicted(
    estimator: Estimator, session: Session, truth: Tensor, controls: Tensor, data: tuple[Tensor, Tensor, Tensor]
) -> float | None:
    """Return the theoretical cosine: cos^2 = 1 / (1 + (D + N + C) / S) for S perturbations of P controls.

    D = P + 1 for Gaussian directions, P - 1 for signs, and (P - 1) (H - S) / (H - 1) for rows of a Hadamard matrix of
    order H. N = P v / |g|^2 with the variance v of a derivative along a direction, from claimed noise and rounding. C =
    P c / |g|^2 with the mean square curvature c of the device's noiseless law along random directions.
    """
    if not isinstance(estimator, ZeroOrder) or estimator.step_choice is None:
        return None
    count, size, step = estimator.count(len(truth)), len(truth), estimator.step_choice.size
    whole = 1 << (size - 1).bit_length()
    directions = {
        Gaussian: size + 1.0,
        Rademacher: size - 1.0,
        Orthogonal: (size - 1) * max(whole - count, 0) / (whole - 1),
    }.get(type(estimator))
    law = session.capability(Differentiable)
    if directions is None or law is None:
        return None
    inputs, outputs, grad_outputs = data
    readout = choose_readout(session.spec, estimator.compression, estimator.tail, inputs, outputs, grad_outputs)
    noise = estimator.change_variance(readout) / step**2

    def change(moves: Tensor) -> Tensor:
        moved = law.transfer(within(session.spec, controls + step * moves), inputs)
        return ((moved - law.transfer(controls, inputs)) * grad_outputs).sum(dim=(1, 2)) / step

    generator = derive_generator(0, "bench", "curvature")
    draw = torch.randn(_CURVATURE_DIRECTIONS, size, generator=generator)
    moves = draw if type(estimator) is Gaussian else draw.sign()
    with torch.no_grad():
        slopes = (change(moves) - change(-moves)) / 2 if estimator.antithetic else change(moves)
    curvature = float((slopes - moves @ truth).square().mean())
    return 1 / sqrt(1 + (directions + size * (noise + curvature) / float(truth.square().sum())) / count)


class _RecordingEstimator(Estimator):
    """Forward to an estimator, and keep its latest arguments and estimate."""

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self._estimator = estimator

    def estimate(
        self, session: Session, controls: Tensor, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor
    ) -> Tensor:
        self.data = controls.clone(), inputs, outputs, grad_outputs
        self.answer = self._estimator.estimate(session, controls, inputs, outputs, grad_outputs)
        self.transfer_matrix = self._estimator.transfer_matrix
        return self.answer


def _after_an_epoch(case: Record, parsed: dict[str, Any]) -> Record:
    """Measure the gradients of the last batch of an epoch."""
    size, seed = case["size"], case["seed"]
    config = RunConfig(seed=seed, in_features=size, out_features=size)
    task = make_task(config)
    session, _ = open_chip(case["device"], case["impairments"], (size, size), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleGradientWarning)
        layers = dict.fromkeys(task.device_layers, session)
        model = attach(task.model(seed), layers, seed=seed, start="cold", **parsed)
        fit = Fit(config, task, task.splits(), model)
        (layer,) = fit.layers
        recorder = layer.estimator = _RecordingEstimator(layer.estimator)
        before = after = session.usage_by_purpose
        for record in fit.run():
            if record["event"] == "epoch":
                break
            before, after = after, session.usage_by_purpose
    controls, inputs, outputs, grad_outputs = recorder.data
    spent = sum(
        (after[name] - before.get(name, Usage()) for name in (Purpose.CONTROLS, Purpose.INPUTS) if name in after),
        Usage(),
    )
    gradient = layer.surrogate.vjp(grad_outputs)
    return {
        "data": "digits",
        "programs": spent.programs,
        "vectors": spent.vectors,
        "cosine_controls": cosine(recorder.answer, Exact().estimate(session, controls, inputs, outputs, grad_outputs)),
        "cosine_inputs": cosine(gradient, _true_inputs(session, controls, inputs, grad_outputs)),
        "predicted_controls": None,
    }


def _true_inputs(session: Session, controls: Tensor, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
    """Return the exact gradient of the inputs."""
    law = surrogates.Exact()
    law.start(session, controls)
    law.recall(inputs)
    return law.vjp(grad_outputs)
