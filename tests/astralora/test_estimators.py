"""Estimators against mathematics: unbiasedness, predicted variance, exactness, and what they cost."""

from math import sqrt
from typing import Any

import pytest
import torch

from astralora import ESTIMATORS, ConfigurationError
from astralora.estimators import Elementwise, Exact, Gaussian, Output
from devices import Budget, BudgetExceeded, DeviceSpec, RehearsalDevice, Session, Usage
from simulators import Impairments


def problem(session: Any, batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Controls, inputs, outputs and output gradients of one step."""
    generator = torch.Generator().manual_seed(seed)
    spec = session.spec
    controls = session.device.initial_controls(generator).to(dtype)
    inputs = torch.empty(batch, spec.in_features, dtype=dtype).uniform_(-1, 1, generator=generator)
    outputs = session.apply(controls, inputs)
    grad_outputs = torch.randn(batch, spec.out_features, dtype=dtype, generator=generator)
    return controls, inputs, outputs, grad_outputs


def truth(session: Any, controls: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    return Exact().estimate(session, controls, *rest)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


# -- gaussian ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 40])
def test_gaussian_is_unbiased_with_the_predicted_variance(batch: int, simulated: Any) -> None:
    # On A = W the loss is linear in the controls: variance of entry i is (|g|^2 + g_i^2) / M, no other term.
    session = simulated("matvec", 5, 4)
    step = problem(session, batch)
    g, M, repeats = truth(session, *step), 8, 4000
    estimator = Gaussian(samples=M, step=1e-3)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    variance = (g.square().sum() + g.square()) / M
    error = (estimates.mean(dim=0) - g) / (variance / repeats).sqrt()
    assert float(error.abs().max()) < 5, "standard errors off"
    # The estimate's fourth moment is at most 9 times its squared variance here: 5 standard errors of a variance.
    ratio = estimates.var(dim=0) / variance
    assert float((ratio - 1).abs().max()) < 5 * sqrt(8 / repeats)


def test_gaussian_costs_samples_programs_and_m_vectors_each(simulated: Any) -> None:
    session = simulated("matvec", 64, 64)
    step = problem(session, 256)
    before = session.usage
    Gaussian(samples=100).estimate(session, *step)
    spent = session.usage - before
    # As published: 101 settings of 64 vectors; the first setting is the one that the forward pass left.
    assert (spent.programs, spent.vectors) == (100, 101 * 64)


@pytest.mark.parametrize("name", ["gaussian", "output"])
def test_compressing_the_batch_changes_nothing_but_the_cost(name: str, simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    controls, inputs, outputs, grads = problem(session, 12)
    estimates, vectors = [], []
    for rows in (slice(0, 12), slice(0, 3)):
        # Twelve rows are compressed to four; the same sum in three parts of four at most is not.
        estimate = torch.zeros_like(controls)
        before = session.usage
        if rows.stop == 12:
            estimate = ESTIMATORS.make(name, samples=6, seed=1).estimate(session, controls, inputs, outputs, grads)
        else:
            for part in range(0, 12, 3):
                r = slice(part, part + 3)
                estimator = ESTIMATORS.make(name, samples=6, seed=1)
                estimate += estimator.estimate(session, controls, inputs[r], outputs[r], grads[r])
        estimates.append(estimate)
        vectors.append((session.usage - before).vectors)
    torch.testing.assert_close(*estimates)
    assert vectors == [7 * 4, 6 * 12]


def test_gaussian_works_on_a_device_that_is_not_linear(matrix_device: Any, generator: torch.Generator) -> None:
    device = matrix_device(linear=False, coupling="dense")
    session = Session(device)
    session.open()
    controls = torch.empty(12, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    inputs = torch.empty(50, 4, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    grads = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    outputs = session.apply(controls, inputs)
    expected = (grads.T @ inputs).flatten()
    M = 4000
    estimate = Gaussian(samples=M, step=1e-4).estimate(session, controls, inputs, outputs, grads)
    error = (estimate - expected) / ((expected.square().sum() + expected.square()) / M).sqrt()
    assert float(error.abs().max()) < 5


def test_a_fraction_of_the_batch_stands_for_all_of_it(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 8)
    g, repeats = truth(session, *step), 3000
    estimator = Gaussian(samples=8, step=1e-3, batch_fraction=0.25)
    before = session.usage
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    assert (session.usage - before).vectors == repeats * 8 * 2
    error = (estimates.mean(dim=0) - g) / (estimates.std(dim=0) / sqrt(repeats))
    assert float(error.abs().max()) < 5


def test_a_fraction_of_the_controls_gets_a_gradient(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 8)
    estimate = Gaussian(samples=4, control_fraction=0.25).estimate(session, *step)
    assert int((estimate != 0).sum()) == 5


@pytest.mark.parametrize("name", ["gaussian", "output"])
def test_splitting_the_perturbations_into_calls_changes_nothing(
    name: str, simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 8)
    # Directions of one call are drawn together: 16 numbers at a time keep the stream the same.
    whole = ESTIMATORS.make(name, samples=16, seed=3).estimate(session, *step)
    monkeypatch.setattr("astralora.estimators.base._CHUNK", 4 * 20)
    torch.testing.assert_close(ESTIMATORS.make(name, samples=16, seed=3).estimate(session, *step), whole)


# -- output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 40])
def test_output_is_unbiased_with_the_variance_of_its_own_output_alone(batch: int, simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, batch)
    g, M, repeats = truth(session, *step), 8, 4000
    estimator = Output(samples=M, step=1e-3)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    rows = g.reshape(4, 5).square()
    variance = ((rows.sum(dim=1, keepdim=True) - rows) / M).flatten()
    error = (estimates.mean(dim=0) - g) / (variance / repeats).sqrt()
    assert float(error.abs().max()) < 5
    ratio = estimates.var(dim=0) / variance
    assert float((ratio - 1).abs().max()) < 5 * sqrt(8 / repeats)


@pytest.mark.parametrize(("name", "variance"), [("gaussian", 4), ("output", 4)])
def test_zero_order_is_unbiased_at_the_ends_of_the_range_too(name: str, variance: float, simulated: Any) -> None:
    # There half of the steps are cut short: the variance at most quadruples, the mean must not change.
    session = simulated("matvec", 5, 4)
    _, inputs, _, grads = problem(session, 9)
    controls = torch.ones(20, dtype=torch.float64)
    controls[::2] = -0.97
    step = controls, inputs, session.apply(controls, inputs), grads
    g, M = truth(session, *step), 20_000
    estimate = ESTIMATORS.make(name, samples=M, step=0.05).estimate(session, *step)
    error = (estimate - g) / (variance * (g.square().sum() + g.square()) / M).sqrt()
    assert float(error.abs().max()) < 5


# -- elementwise ------------------------------------------------------------------------------


def test_elementwise_is_exact_where_the_matrix_is_linear_in_the_controls(simulated: Any) -> None:
    session = simulated("matvec", 6, 5)
    step = problem(session, 9)
    torch.testing.assert_close(Elementwise().estimate(session, *step), truth(session, *step))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_elementwise_converges_with_the_step_as_a_one_sided_difference_does(bounds: Any, simulated: Any) -> None:
    session = simulated("slm", 6, 5, input_range=bounds)
    controls, inputs, _, grads = problem(session, 9) if bounds[0] < 0 else problem_positive(session)
    outputs = session.apply(controls, inputs)
    g = truth(session, controls, inputs, outputs, grads)
    errors = [
        float((Elementwise(step=step).estimate(session, controls, inputs, outputs, grads) - g).norm() / g.norm())
        for step in (1e-2, 1e-3)
    ]
    # Curvature enters as mu A'' / 2: a tenth of the step, a tenth of the error.
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)


def problem_positive(session: Any) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    controls = session.device.initial_controls(generator).double()
    inputs = torch.rand(9, 6, dtype=torch.float64, generator=generator)
    return controls, inputs, inputs, torch.randn(9, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_elementwise_reaches_a_cosine_of_098_on_a_lab_mrr_with_2_programs_and_128_vectors(
    seed: int, simulated: Any
) -> None:
    session = simulated("mrr", 64, 64, impairments="lab", seed=seed)
    controls, inputs, outputs, grads = problem(session, 256, seed, torch.float32)
    session.program(controls.flip(0))
    estimator = Elementwise(seed=seed)
    # The detector's gain is set once, before; a first measurement finds it.
    estimator.estimate(session, controls, inputs, outputs, grads)
    session.program(controls.flip(0))
    before = session.usage
    estimate = estimator.estimate(session, controls, inputs, outputs, grads)
    spent = session.usage - before
    assert (spent.programs, spent.vectors) == (2, 128)
    assert cosine(estimate, truth(session, controls, inputs, outputs, grads)) >= 0.98


def test_elementwise_leaves_the_transfer_matrix_behind(simulated: Any) -> None:
    session = simulated("mrr", 6, 5)
    step = problem(session, 9)
    estimator = Elementwise()
    estimator.estimate(session, *step)
    torch.testing.assert_close(estimator.transfer_matrix, session.device.physics.matrix(step[0], 6, 5))


def test_elementwise_steps_inward_at_the_ends_of_the_range(simulated: Any) -> None:
    session = simulated("matvec", 6, 5)
    _, inputs, outputs, grads = problem(session, 9)
    controls = torch.ones(30, dtype=torch.float64)
    controls[::2] = -1
    estimate = Elementwise().estimate(session, controls, inputs, outputs, grads)
    torch.testing.assert_close(estimate, (grads.T @ inputs).flatten())


# -- exact ------------------------------------------------------------------------------------


def test_exact_is_autograd_through_the_law_and_costs_nothing(simulated: Any) -> None:
    session = simulated("mzi", 4, 4, impairments="lab")
    controls, inputs, outputs, grads = problem(session, 3)
    before = session.usage
    estimate = Exact().estimate(session, controls, inputs, outputs, grads)
    assert session.usage == before
    leaf = controls.clone().requires_grad_()
    (session.device.transfer(leaf, inputs) * grads).sum().backward()
    torch.testing.assert_close(estimate, leaf.grad)


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "spec", "complaint"),
    [
        (Elementwise(), {"linear": False}, "'elementwise' works on linear devices only.*use 'gaussian'"),
        (Elementwise(), {"coupling": "dense"}, "needs elementwise coupling, and that of 'bench' is dense"),
        (Output(), {"coupling": "dense"}, "needs elementwise or output coupling"),
        (Exact(), {}, "whose law autograd can follow"),
        (Gaussian(step=0.01), {"control_levels": 101}, "below one control level of 'bench', 0.04 V.*at least 0.08"),
        (Gaussian(step=3.0), {}, "more than half the control range"),
        (Gaussian(step=-1.0), {}, "a step must be positive"),
    ],
)
def test_refuses_a_device_that_it_cannot_work_on(
    estimator: Any, spec: dict[str, Any], complaint: str, matrix_device: Any
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        estimator.check(Session(matrix_device(**spec)))


@pytest.mark.parametrize("options", [{"samples": 0}, {"batch_fraction": 0.0}, {"control_fraction": 1.5}])
def test_refuses_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Gaussian(**options)


@pytest.mark.parametrize("name", ["gaussian", "output", "elementwise"])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_a_budget_of_exactly_what_an_estimate_takes_is_enough(name: str, bounds: Any, simulated: Any) -> None:
    session = simulated("matvec", 6, 5, input_range=bounds)
    step = problem_positive(session)

    def estimate() -> Usage:
        session.program(step[0])
        before = session.usage
        ESTIMATORS.make(name, samples=10).estimate(session, *step)
        return session.usage - before

    spent, so_far = estimate(), session.usage
    # Once more, the program that brings the first controls back included.
    session.budget = Budget(programs=so_far.programs + 1 + spent.programs, vectors=so_far.vectors + spent.vectors)
    estimate()


@pytest.mark.parametrize("name", ["gaussian", "output", "elementwise"])
def test_refuses_to_begin_an_estimate_that_the_budget_does_not_cover(name: str, simulated: Any) -> None:
    session = simulated("matvec", 6, 5)
    step = problem(session, 9)
    session.budget = Budget(programs=session.usage.programs + 1, vectors=10**6 if name != "elementwise" else 20)
    spent = session.usage
    with pytest.raises(BudgetExceeded):
        ESTIMATORS.make(name, samples=10).estimate(session, *step)
    assert session.usage == spent


def test_a_step_of_auto_is_two_whole_levels_at_least() -> None:
    from astralora.estimators.base import choose_step

    spec = DeviceSpec(
        name="coarse", in_features=2, out_features=2, num_controls=4, control_range=(0.0, 3.0), control_levels=16
    )
    assert choose_step(spec, "auto", share=1 / 32) == pytest.approx(0.4)
    assert choose_step(spec, "auto", share=1 / 4) % 0.2 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_coarse_controls_are_moved_by_whole_levels(levels: int, simulated: Any) -> None:
    session = simulated("matvec", 6, 5, impairments=Impairments(control_levels=levels))
    step = problem(session, 9)
    estimate = Elementwise().estimate(session, *step)
    torch.testing.assert_close(estimate, (step[3].T @ step[1]).flatten(), atol=1e-4, rtol=1e-4)


def test_two_control_levels_are_too_few(simulated: Any) -> None:
    with pytest.raises(ConfigurationError, match="has 2 control levels: too few"):
        Elementwise().check(simulated("matvec", 6, 5, impairments=Impairments(control_levels=2)))


def test_an_estimator_goes_on_with_the_same_stream_from_saved_state(simulated: Any) -> None:
    session = simulated("slm", 6, 5)
    step = problem(session, 9)
    for name in ("gaussian", "output", "elementwise"):
        first, second = (ESTIMATORS.make(name, samples=3, seed=seed) for seed in (0, 99))
        first.estimate(session, *step)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.estimate(session, *step), second.estimate(session, *step))


def test_noise_is_inside_the_device_where_probes_meet_it(simulated: Any) -> None:
    # The published code adds noise behind the layer, so that its estimator never sees any.
    quiet, noisy = (
        simulated("matvec", 6, 5, impairments=Impairments(output_noise_fraction=fraction)) for fraction in (0.0, 0.05)
    )
    estimates = [Gaussian(samples=5).estimate(s, *problem(quiet, 9)) for s in (quiet, noisy)]
    assert not torch.allclose(*estimates, rtol=1e-3)


def test_a_rehearsed_estimate_costs_what_a_real_one_does(simulated: Any) -> None:
    real = simulated("slm", 8, 5)
    rehearsed = Session(RehearsalDevice(real.spec))
    rehearsed.open()
    step = problem(real, 9)
    for name in ("gaussian", "output", "elementwise", "exact"):
        spent = []
        for session in (real, rehearsed):
            session.program(step[0])
            before = session.usage
            ESTIMATORS.make(name, samples=7).estimate(session, *step)
            usage = session.usage - before
            spent.append((usage.programs, usage.queries, usage.vectors))
        assert spent[0] == spent[1], name
