"""Test estimators against the formulas: bias, variance, exactness and cost."""

from math import sqrt
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.devices import Budget, BudgetExceeded, DeviceSpec, RehearsalDevice, Session, Usage, initial_controls
from astralora.estimators import (
    ESTIMATORS,
    Coloured,
    Coordinate,
    Elementwise,
    Exact,
    Gaussian,
    Orthogonal,
    Output,
    Rademacher,
    Twin,
)
from astralora.estimators.steps import StepChoice, choose_step
from astralora.simulators import Impairments


def problem(session: Any, batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Return controls, inputs, outputs and output gradients of one step."""
    generator = torch.Generator().manual_seed(seed)
    spec = session.spec
    controls = initial_controls(session.spec, generator).to(dtype)
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
    assert float(error.abs().max()) < 5, "standard errors"
    # The fourth moment is at most 9 times the squared variance here: 5 standard errors of a variance.
    ratio = estimates.var(dim=0) / variance
    assert float((ratio - 1).abs().max()) < 5 * sqrt(8 / repeats)


def test_gaussian_costs_samples_programs_and_m_vectors_each(simulated: Any) -> None:
    session = simulated("matvec", 64, 64)
    step = problem(session, 256)
    before = session.usage
    Gaussian(samples=100).estimate(session, *step)
    spent = session.usage - before
    # As published: 101 settings of 64 vectors; the device already holds the first setting.
    assert (spent.programs, spent.vectors) == (100, 101 * 64)


@pytest.mark.parametrize("name", ["gaussian", "output"])
def test_compressing_the_batch_changes_nothing_but_the_cost(name: str, simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    controls, inputs, outputs, grads = problem(session, 12)
    estimates, vectors = [], []
    for rows in (slice(0, 12), slice(0, 3)):
        # Twelve rows are compressed to four. The same sum in parts of three rows is not compressed.
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


def test_a_fraction_of_the_batch_gives_an_unbiased_estimate(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 8)
    g, repeats = truth(session, *step), 3000
    estimator = Gaussian(samples=8, step=1e-3, batch_fraction=0.25)
    before = session.usage
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    assert (session.usage - before).vectors == repeats * 8 * 2
    error = (estimates.mean(dim=0) - g) / (estimates.std(dim=0) / sqrt(repeats))
    assert float(error.abs().max()) < 5


def test_only_the_given_fraction_of_the_controls_gets_a_gradient(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 8)
    estimate = Gaussian(samples=4, control_fraction=0.25).estimate(session, *step)
    assert int((estimate != 0).sum()) == 5


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "orthogonal", "coordinate", "output"])
def test_splitting_the_perturbations_into_calls_changes_nothing(
    name: str, simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 8)
    # Directions of one call are drawn together; calls of 4 directions give the same random stream.
    whole = ESTIMATORS.make(name, samples=16, seed=3).estimate(session, *step)
    monkeypatch.setattr("astralora.estimators.base._CHUNK", 4 * 20)
    torch.testing.assert_close(ESTIMATORS.make(name, samples=16, seed=3).estimate(session, *step), whole)


# -- output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 40])
def test_output_is_unbiased_with_the_variance_from_its_own_output_only(batch: int, simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, batch)
    g, M, repeats = truth(session, *step), 4, 4000
    estimator = Output(samples=M, step=1e-3)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    rows = g.reshape(4, 5).square()
    # Five controls use a set of N = 8 rows; four samples of it give the factor (N - M) / (N - 1).
    variance = ((rows.sum(dim=1, keepdim=True) - rows) / M).flatten() * (8 - M) / 7
    error = (estimates.mean(dim=0) - g) / (variance / repeats).sqrt()
    assert float(error.abs().max()) < 5
    ratio = estimates.var(dim=0) / variance
    assert float((ratio - 1).abs().max()) < 5 * sqrt(8 / repeats)


@pytest.mark.parametrize(("name", "variance"), [("gaussian", 4), ("rademacher", 4), ("orthogonal", 4), ("output", 4)])
def test_zero_order_is_unbiased_at_the_ends_of_the_range(name: str, variance: float, simulated: Any) -> None:
    # Half of the steps are cut short: the variance grows by at most 4, and the mean must not change.
    session = simulated("matvec", 5, 4)
    _, inputs, _, grads = problem(session, 9)
    controls = torch.ones(20, dtype=torch.float64)
    controls[::2] = -0.97
    step = controls, inputs, session.apply(controls, inputs), grads
    g, M = truth(session, *step), 20_000
    estimate = ESTIMATORS.make(name, samples=M, step=0.05).estimate(session, *step)
    error = (estimate - g) / (variance * (g.square().sum() + g.square()) / M).sqrt()
    assert float(error.abs().max()) < 5


# -- rademacher, orthogonal, coordinate ---------------------------------------------------------


@pytest.mark.parametrize(("kind", "left"), [(Rademacher, 1.0), (Orthogonal, (32 - 8) / 31)])
def test_sign_directions_are_unbiased_with_the_predicted_variance(kind: Any, left: float, simulated: Any) -> None:
    # (|g|^2 - g_i^2) / M, times (N - M) / (N - 1) without repetition from a set of N = 32 rows.
    session = simulated("matvec", 5, 4)
    step = problem(session, 9)
    g, M, repeats = truth(session, *step), 8, 3000
    estimator = kind(samples=M, step=1e-3)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    variance = (g.square().sum() - g.square()) / M * left
    error = (estimates.mean(dim=0) - g) / (variance / repeats).sqrt()
    assert float(error.abs().max()) < 5
    ratio = estimates.var(dim=0) / variance
    assert float((ratio - 1).abs().max()) < 5 * sqrt(8 / repeats)


def test_a_whole_set_of_orthogonal_directions_is_exact(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 9)
    torch.testing.assert_close(Orthogonal(samples=32).estimate(session, *step), truth(session, *step))


def test_output_with_a_whole_set_of_signs_is_exact(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 9)
    torch.testing.assert_close(Output(samples=8).estimate(session, *step), truth(session, *step))


def test_coordinate_is_exact_with_one_program_a_control(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 9)
    before = session.usage.programs
    torch.testing.assert_close(Coordinate().estimate(session, *step), truth(session, *step))
    assert session.usage.programs - before == 20


def test_a_few_coordinates_give_an_unbiased_estimate(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 9)
    g, repeats = truth(session, *step), 2000
    estimator = Coordinate(samples=5)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    # A quarter of the controls get a gradient, four times as large.
    assert float((estimates != 0).sum()) == pytest.approx(repeats * 5, abs=5)
    error = (estimates.mean(dim=0) - g).abs() / (g.abs() * sqrt(3 / repeats))
    assert float(error.max()) < 5


@pytest.mark.parametrize(("antithetic", "order"), [(False, 1), (True, 2)])
def test_antithetic_pairs_cancel_even_curvature(antithetic: bool, order: int, simulated: Any) -> None:
    session = simulated("slm", 5, 4)
    step = problem(session, 9)
    g = truth(session, *step)
    errors = [
        float((Coordinate(step=size, antithetic=antithetic).estimate(session, *step) - g).norm())
        for size in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", ["gaussian", "rademacher", "orthogonal", "output"])
def test_a_sample_takes_one_program_and_an_antithetic_pair_two(name: str, antithetic: bool, simulated: Any) -> None:
    session = simulated("matvec", 8, 8)
    step = problem(session, 4)
    before = session.usage
    ESTIMATORS.make(name, samples=10, antithetic=antithetic, compression="none").estimate(session, *step)
    spent = session.usage - before
    assert (spent.programs, spent.vectors) == ((20, 80) if antithetic else (10, 40))


# -- vectors that a linear device is sent ----------------------------------------------------------


def test_singular_probes_cost_as_many_vectors_as_the_product_has_rank(simulated: Any) -> None:
    session = simulated("matvec", 16, 12)
    controls, inputs, outputs, grads = problem(session, 40)
    grads = grads[:, :3] @ torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    before = session.usage
    estimate = Orthogonal(samples=256).estimate(session, controls, inputs, outputs, grads)
    assert (session.usage - before).vectors == 257 * 3
    torch.testing.assert_close(estimate, truth(session, controls, inputs, outputs, grads))


def test_the_error_of_a_tail_is_its_share_of_the_gradient(simulated: Any) -> None:
    session = simulated("matvec", 16, 12)
    step = problem(session, 40)
    product = step[3].T @ step[1]
    s = torch.linalg.svdvals(product).square()
    rank = int((s.flip(0).cumsum(0).flip(0) > 0.1 * s.sum()).sum())
    assert rank < 12
    before = session.usage
    estimate = Orthogonal(samples=256, tail=0.1).estimate(session, *step)
    assert (session.usage - before).vectors == 257 * rank
    # On A = W the gradient is G^T X itself, and the estimate its best approximation of this rank.
    lost = (estimate - truth(session, *step)).square().sum() / s.sum()
    assert float(lost) == pytest.approx(float(s[rank:].sum() / s.sum()))


def test_the_step_grows_where_noise_hides_the_answers_and_gives_the_reason(simulated: Any) -> None:
    session = simulated("matvec", 16, 12, impairments=Impairments(output_noise_fraction=0.05))
    step = problem(session, 40)
    estimator = Orthogonal(samples=20)
    estimator.estimate(session, *step)
    assert estimator.step_choice == StepChoice(2 / 64, "curvature")
    for _ in range(12):
        estimator.estimate(session, *step)
    assert estimator.step_choice is not None
    assert estimator.step_choice.bound in ("noise", "curvature")
    assert 2 / 64 < estimator.step_choice.size <= 2 / 8


# -- twins ------------------------------------------------------------------------------------


def test_twin_is_autograd_through_the_model_and_costs_nothing(simulated: Any) -> None:
    device, twin = simulated("mzi", 4, 4, impairments="lab", seed=1), simulated("mzi", 4, 4)
    step = problem(device, 7)
    before = device.usage
    estimate = Twin(twin=twin.device).estimate(device, *step)
    assert device.usage == before
    torch.testing.assert_close(estimate, truth(twin, *step))


def test_a_twin_of_another_size_is_refused(simulated: Any) -> None:
    with pytest.raises(ConfigurationError, match="the twin has out_features = 3, but 'matvec' has 4"):
        Twin(twin=simulated("matvec", 5, 3).device).check(simulated("matvec", 5, 4))


class Scaled:
    """Model a device with a wrong factor, and with an additional wrong gradient."""

    def __init__(self, device: Any, factor: float, wrong: float) -> None:
        self.device, self.factor = device, factor
        count = device.spec.num_controls
        self.noise = wrong * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def transfer(self, controls: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.device.transfer(controls, inputs)
        return self.factor * answer + (controls * self.noise).sum() / inputs.shape[0]


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "output"])
@pytest.mark.parametrize(("factor", "wrong", "most"), [(3.0, 0.0, 0.02), (1.0, 0.3, 1.0), (0.0, 1.0, 1.3)])
def test_a_twin_as_control_variate_reduces_the_variance_without_bias(
    name: str, factor: float, wrong: float, most: float, simulated: Any
) -> None:
    session = simulated("matvec", 5, 4)
    step = problem(session, 9)
    g, repeats = truth(session, *step), 800

    def errors(**options: Any) -> torch.Tensor:
        estimator = ESTIMATORS.make(name, samples=6, step=1e-3, seed=2, **options)
        return torch.stack([estimator.estimate(session, *step) for _ in range(repeats)]) - g

    without, with_twin = errors(), errors(twin=Scaled(session.device, factor, wrong))
    bias = with_twin.mean(dim=0) / (with_twin.std(dim=0) / sqrt(repeats)).clamp_min(1e-9)
    assert float(bias.abs().max()) < 5
    assert float(with_twin.square().sum() / without.square().sum()) < most


@pytest.mark.parametrize("name", ["orthogonal", "coordinate", "output"])
def test_a_twin_does_not_bias_directions_that_are_drawn_without_repetition(name: str, simulated: Any) -> None:
    # With all directions the estimate is exact for any twin.
    session = simulated("matvec", 2, 1)
    step = problem(session, 3)
    samples = {"orthogonal": 2, "coordinate": None, "output": 2}[name]
    twin = Scaled(session.device, -1.0, 0.0)
    estimator = ESTIMATORS.make(name, samples=samples, step=1e-3, twin=twin)
    for _ in range(3):
        torch.testing.assert_close(estimator.estimate(session, *step), truth(session, *step))


def test_antithetic_coordinates_are_exact_at_the_ends_of_the_range(simulated: Any) -> None:
    session = simulated("matvec", 3, 1)
    _, inputs, _, grads = problem(session, 5)
    controls = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    step = controls, inputs, session.apply(controls, inputs), grads
    torch.testing.assert_close(Coordinate(antithetic=True).estimate(session, *step), truth(session, *step))


# -- coloured ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(16, 16), (16, 8), (12, 10)])
def test_coloured_finds_the_gradient_of_a_monarch_with_two_extra_programs(n: int, m: int, simulated: Any) -> None:
    session = simulated("monarch", n, m)
    controls, inputs, outputs, grads = problem(session, 20)
    session.program(controls)
    before = session.usage
    estimate = Coloured(step=1e-5).estimate(session, controls, inputs, outputs, grads)
    assert (session.usage - before).programs == 2
    g = truth(session, controls, inputs, outputs, grads)
    assert float((estimate - g).norm() / g.norm()) < 1e-4


@pytest.mark.parametrize(("coupling", "programs"), [("elementwise", 1), ("output", 8)])
def test_coloured_is_exact_for_the_simpler_couplings(coupling: str, programs: int, matrix_device: Any) -> None:
    session = Session(matrix_device(5, 4, coupling=coupling))
    session.open()
    generator = torch.Generator().manual_seed(3)
    controls = torch.empty(20, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    inputs = torch.empty(9, 5, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    grads = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    outputs = session.apply(controls, inputs)
    before = session.usage.programs
    estimator = Coloured()
    estimate = estimator.estimate(session, controls, inputs, outputs, grads)
    assert session.usage.programs - before == programs
    torch.testing.assert_close(estimate, (grads.T @ inputs).flatten())
    torch.testing.assert_close(estimator.transfer_matrix, controls.view(4, 5))


def test_coloured_with_fewer_programs_is_unbiased(matrix_device: Any, simulated: Any) -> None:
    session = simulated("monarch", 8, 8)
    step = problem(session, 9)
    g, repeats = truth(session, *step), 1500
    estimator = Coloured(samples=1, step=1e-4)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    error = (estimates.mean(dim=0) - g) / (estimates.std(dim=0) / sqrt(repeats))
    assert float(error.abs().max()) < 5


def test_coloured_is_unbiased_at_the_ends_of_the_range(simulated: Any) -> None:
    session = simulated("matvec", 5, 4)
    _, inputs, _, grads = problem(session, 9)
    controls = torch.ones(20, dtype=torch.float64)
    controls[::2] = -0.99
    step = controls, inputs, session.apply(controls, inputs), grads
    g, repeats = truth(session, *step), 400
    estimator = Coloured(step=0.05)
    estimates = torch.stack([estimator.estimate(session, *step) for _ in range(repeats)])
    error = (estimates.mean(dim=0) - g).abs() / (estimates.std(dim=0) / sqrt(repeats)).clamp_min(1e-9)
    assert float(error.max()) < 5


# -- elementwise ------------------------------------------------------------------------------


def estimates_after_moves(session: Any, estimator: Elementwise, moves: int, size: float) -> list[tuple[int, float]]:
    """Return the programs of an estimate and its cosine to the truth, after each of several random moves."""
    controls, inputs, outputs, grads = problem(session, 64, dtype=torch.float32)
    generator = torch.Generator().manual_seed(8)
    found = []
    for _ in range(moves):
        outputs = session.apply(controls, inputs)
        before = session.usage.programs
        estimate = estimator.estimate(session, controls, inputs, outputs, grads)
        spent = session.usage.programs - before
        found.append((spent, cosine(estimate, truth(session, controls, inputs, outputs, grads))))
        controls = controls + size * torch.randn(len(controls), generator=generator)
    return found


def test_elementwise_measures_once_in_every_changes(simulated: Any) -> None:
    session = simulated("slm", 64, 32, impairments="lab")
    found = estimates_after_moves(session, Elementwise(every=4), 9, 0.005)
    assert [programs for programs, _ in found] == [1, 0, 0, 0] * 2 + [1]
    assert min(cosine for _, cosine in found) > 0.98


def test_elementwise_reports_its_staleness_and_measures_again_above_the_limit(simulated: Any) -> None:
    session = simulated("slm", 16, 8)
    patient, careful = Elementwise(every=100, stale=9.9), Elementwise(every=100, stale=0.05)
    assert [programs for programs, _ in estimates_after_moves(session, patient, 12, 0.2)] == [1] + [0] * 11
    assert patient.age == 11
    assert patient.staleness > 0.05
    measured = [programs for programs, _ in estimates_after_moves(session, careful, 12, 0.2)]
    assert 2 <= sum(measured) < 12
    assert careful.staleness <= 0.05


def test_elementwise_extrapolates_the_matrix_to_first_order(simulated: Any) -> None:
    session = simulated("matvec", 6, 5)
    controls, inputs, outputs, grads = problem(session, 9)
    estimator = Elementwise(every=10)
    estimator.estimate(session, controls, inputs, outputs, grads)
    moved = (controls + 0.1).clamp(-1, 1)
    estimator.estimate(session, moved, inputs, session.apply(moved, inputs), grads)
    torch.testing.assert_close(estimator.transfer_matrix, moved.view(5, 6))


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
    # The error of curvature is mu A'' / 2: a tenth of the step gives a tenth of the error.
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05)


def problem_positive(session: Any) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    controls = initial_controls(session.spec, generator).double()
    inputs = torch.rand(9, 6, dtype=torch.float64, generator=generator)
    outputs = session.apply(controls, inputs)
    return controls, inputs, outputs, torch.randn(9, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_elementwise_reaches_a_cosine_of_098_on_a_lab_mrr_with_2_programs_and_128_vectors(
    seed: int, simulated: Any
) -> None:
    session = simulated("mrr", 64, 64, impairments="lab", seed=seed)
    controls, inputs, outputs, grads = problem(session, 256, seed, torch.float32)
    session.program(controls.flip(0))
    estimator = Elementwise(seed=seed)
    # A first measurement finds the amplitude of the probes.
    estimator.estimate(session, controls, inputs, outputs, grads)
    session.program(controls.flip(0))
    before = session.usage
    estimate = estimator.estimate(session, controls, inputs, outputs, grads)
    spent = session.usage - before
    assert (spent.programs, spent.vectors) == (2, 128)
    assert cosine(estimate, truth(session, controls, inputs, outputs, grads)) >= 0.98


def test_elementwise_stores_the_transfer_matrix(simulated: Any) -> None:
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


# -- refusals and budgets ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "spec", "complaint"),
    [
        (Elementwise(), {"linear": False}, "'elementwise' works on linear devices only.*use 'gaussian'"),
        (Elementwise(), {"coupling": "dense"}, "needs elementwise coupling, but the coupling of 'bench' is dense"),
        (Output(), {"coupling": "dense"}, "needs elementwise or output coupling"),
        (Coloured(), {"coupling": "dense"}, "needs elementwise or output or sparse coupling"),
        (Twin(), {}, "needs a differentiable model of 'bench'.*but twin is missing"),
        (Exact(), {}, "needs a device with a differentiable law"),
        (Gaussian(step=0.01), {"control_levels": 101}, "below one control level of 'bench', 0.04 V.*at least 0.08"),
        (Gaussian(step=3.0), {}, "more than half the control range"),
        (Gaussian(step=-1.0), {}, "a step must be positive"),
    ],
)
def test_an_unsuitable_device_is_refused(
    estimator: Any, spec: dict[str, Any], complaint: str, matrix_device: Any
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        estimator.check(Session(matrix_device(**spec)))


@pytest.mark.parametrize("options", [{"samples": 0}, {"batch_fraction": 0.0}, {"control_fraction": 1.5}])
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Gaussian(**options)


@pytest.mark.parametrize(
    "name", ["gaussian", "rademacher", "orthogonal", "coordinate", "output", "coloured", "elementwise"]
)
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_a_budget_of_exactly_the_cost_of_an_estimate_is_enough(name: str, bounds: Any, simulated: Any) -> None:
    session = simulated("matvec", 6, 5, input_range=bounds)
    step = problem_positive(session)

    def estimate() -> Usage:
        session.program(step[0])
        before = session.usage
        ESTIMATORS.make(name, samples=10).estimate(session, *step)
        spent: Usage = session.usage - before
        return spent

    spent, so_far = estimate(), session.usage
    # The same estimate again, plus the program that restores the first controls.
    session.budget = Budget(programs=so_far.programs + 1 + spent.programs, vectors=so_far.vectors + spent.vectors)
    estimate()


@pytest.mark.parametrize("name", ["gaussian", "output", "elementwise"])
def test_an_estimate_beyond_the_budget_is_refused_before_anything_is_spent(name: str, simulated: Any) -> None:
    session = simulated("matvec", 6, 5)
    step = problem(session, 9)
    session.budget = Budget(programs=session.usage.programs + 1, vectors=10**6 if name != "elementwise" else 20)
    spent = session.usage
    with pytest.raises(BudgetExceeded):
        ESTIMATORS.make(name, samples=10).estimate(session, *step)
    assert session.usage == spent


def coarse(levels: int | None = None) -> DeviceSpec:
    return DeviceSpec(
        name="coarse", in_features=2, out_features=2, num_controls=4, control_range=(0.0, 3.0), control_levels=levels
    )


def test_an_automatic_step_is_at_least_two_whole_levels() -> None:
    assert choose_step(coarse(16), "auto", share=1 / 32).size == pytest.approx(0.4)
    assert choose_step(coarse(16), "auto", share=1 / 4).size % 0.2 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("levels", "noise", "size", "bound"),
    [
        (None, 0.0, 3 / 32, "curvature"),
        (None, 0.2, 0.2, "noise"),
        (None, 2.0, 3 / 8, "curvature"),
        (16, 0.0, 0.4, "levels"),
        (16, 0.2, 0.4, "levels"),
        (3001, 0.2, 0.2, "noise"),
    ],
)
def test_an_automatic_step_reports_its_reason(levels: int | None, noise: float, size: float, bound: str) -> None:
    choice = choose_step(coarse(levels), "auto", share=1 / 32, noise=noise)
    assert choice.size == pytest.approx(size)
    assert choice.bound == bound


def test_a_given_step_is_used_unchanged() -> None:
    assert choose_step(coarse(16), 0.3, share=1 / 32) == StepChoice(0.3, "given")


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_coarse_controls_are_moved_by_whole_levels(levels: int, simulated: Any) -> None:
    session = simulated("matvec", 6, 5, impairments=Impairments(control_levels=levels))
    step = problem(session, 9)
    estimate = Elementwise().estimate(session, *step)
    torch.testing.assert_close(estimate, (step[3].T @ step[1]).flatten(), atol=1e-4, rtol=1e-4)


def test_two_control_levels_are_too_few(simulated: Any) -> None:
    with pytest.raises(ConfigurationError, match="has 2 control levels, too few"):
        Elementwise().check(simulated("matvec", 6, 5, impairments=Impairments(control_levels=2)))


def test_an_estimator_continues_its_random_stream_from_saved_state(simulated: Any) -> None:
    session = simulated("slm", 6, 5)
    step = problem(session, 9)
    for name in ("gaussian", "rademacher", "orthogonal", "coordinate", "coloured", "output", "elementwise"):
        first, second = (ESTIMATORS.make(name, samples=3, seed=seed) for seed in (0, 99))
        first.estimate(session, *step)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.estimate(session, *step), second.estimate(session, *step))


def test_the_noise_of_the_device_reaches_the_estimator(simulated: Any) -> None:
    # The published code adds noise after the layer, where the estimator does not see it.
    quiet, noisy = (
        simulated("matvec", 6, 5, impairments=Impairments(output_noise_fraction=fraction)) for fraction in (0.0, 0.05)
    )
    first, second = (Gaussian(samples=5).estimate(s, *problem(quiet, 9)) for s in (quiet, noisy))
    assert not torch.allclose(first, second, rtol=1e-3)


def test_a_rehearsed_estimate_costs_as_much_as_a_real_one(simulated: Any) -> None:
    real = simulated("slm", 8, 5)
    rehearsed = Session(RehearsalDevice(real.spec))
    rehearsed.open()
    step = problem(real, 9)
    for name in ("gaussian", "rademacher", "orthogonal", "coordinate", "coloured", "output", "elementwise", "exact"):
        spent = []
        for session in (real, rehearsed):
            session.program(step[0])
            before = session.usage
            ESTIMATORS.make(name, samples=7).estimate(session, *step)
            usage = session.usage - before
            spent.append((usage.programs, usage.queries, usage.vectors))
        assert spent[0] == spent[1], name
