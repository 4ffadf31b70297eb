"""Test surrogates against the true matrices of their devices."""

from math import sqrt
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.devices import Session, initial_controls
from astralora.estimators import Elementwise, Gaussian
from astralora.simulators import PRESETS, Impairments
from astralora.surrogates import SURROGATES, Adjoint, Exact, LowRankOnline, Measured, Online, Psi, Twin

GRADS = torch.ones(1, 1)
"""Gradients for surrogates that do not use them."""


def dense(session: Any, controls: torch.Tensor) -> torch.Tensor:
    """Return the device's true matrix at these controls."""
    matrix: torch.Tensor = session.device.transfer(controls, torch.eye(session.spec.in_features).to(controls)).T
    return matrix


# -- psi --------------------------------------------------------------------------------------


def low_rank_path(session: Any, rank: int, steps: int) -> list[torch.Tensor]:
    """Return controls of a `matvec` whose matrix moves along a curve of this rank."""
    generator = torch.Generator().manual_seed(0)
    n, m = session.spec.in_features, session.spec.out_features
    U0, U1 = (torch.randn(m, rank, dtype=torch.float64, generator=generator) for _ in range(2))
    V0, V1 = (torch.randn(rank, n, dtype=torch.float64, generator=generator) for _ in range(2))
    path = [(U0 + t * U1) @ (V0 + t * V1) for t in torch.linspace(0, 1, steps, dtype=torch.float64)]
    largest = max(float(A.abs().max()) for A in path)
    return [(A / largest).flatten() for A in path]


def follow(surrogate: Psi, session: Any, path: list[torch.Tensor]) -> None:
    session.program(path[0])
    surrogate.start(session, path[0])
    for controls in path[1:]:
        surrogate.prepare(session, GRADS)
        session.program(controls)
        surrogate.controls_changed(session, controls)


def test_psi_tracks_a_noiseless_path_of_its_rank(simulated: Any) -> None:
    session = simulated("matvec", 24, 16)
    path = low_rank_path(session, rank=3, steps=40)
    surrogate = Psi(rank=3, probes=None)
    follow(surrogate, session, path)
    A = dense(session, path[-1])
    assert float((surrogate.U @ surrogate.S @ surrogate.V - A).norm() / A.norm()) < 1e-4
    # The first matrix is far from the last.
    assert float((dense(session, path[0]) - A).norm() / A.norm()) > 0.5


def test_psi_with_gaussian_probes_pays_for_their_noise(simulated: Any) -> None:
    # M' Gaussian probes measure dA^T U1 with a relative variance of about (n + 1) / M'; the errors of steps add up.
    session = simulated("matvec", 24, 16)
    path = low_rank_path(session, rank=3, steps=40)
    errors = []
    for probes in (50, 5000):
        surrogate = Psi(rank=3, probes=probes)
        follow(surrogate, session, path)
        A = dense(session, path[-1])
        errors.append(float((surrogate.U @ surrogate.S @ surrogate.V - A).norm() / A.norm()))
    assert 1e-4 < errors[1] < errors[0] / 3, "100 times the probes give a tenth of the error, within a factor of 3"


def test_psi_keeps_its_factors_orthonormal(simulated: Any) -> None:
    session = simulated("matvec", 24, 16)
    surrogate = Psi(rank=3, probes=50)
    follow(surrogate, session, low_rank_path(session, rank=3, steps=40))
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(surrogate.U.T @ surrogate.U, eye)
    torch.testing.assert_close(surrogate.V @ surrogate.V.T, eye)


def test_psi_starts_from_the_best_matrix_of_its_rank(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("matvec", 12, 8)
    controls = initial_controls(session.spec, generator).double()
    session.program(controls)
    surrogate = Psi(rank=3)
    surrogate.start(session, controls)
    A = dense(session, controls)
    dropped = torch.linalg.svdvals(A)[3:]
    error = (surrogate.U @ surrogate.S @ surrogate.V - A).norm()
    # Eckart and Young: no matrix of this rank is closer.
    assert float(error) == pytest.approx(float(dropped.square().sum().sqrt()))


def test_psi_spends_vectors_but_no_programs_of_its_own(simulated: Any) -> None:
    session = simulated("matvec", 24, 16)
    path = low_rank_path(session, rank=3, steps=11)
    follow(Psi(rank=3, probes=20), session, path)
    assert session.usage.programs == len(path)
    assert session.usage.vectors == 24 + 10 * 2 * (3 + 20)


@pytest.mark.parametrize(
    ("options", "vectors"), [({"exact_svd": True}, 10 * 24), ({"rebuild_every": 5}, 2 * 24 + 8 * 46)]
)
def test_psi_can_start_again_from_a_measurement(options: Any, vectors: int, simulated: Any) -> None:
    session = simulated("matvec", 24, 16)
    surrogate = Psi(rank=3, probes=20, **options)
    path = low_rank_path(session, rank=3, steps=11)
    follow(surrogate, session, path)
    assert session.usage.vectors == 24 + vectors
    if "exact_svd" in options:
        torch.testing.assert_close(surrogate.U @ surrogate.S @ surrogate.V, dense(session, path[-1]))


def test_psi_cannot_describe_a_unitary_matrix_beyond_its_rank(simulated: Any, generator: torch.Generator) -> None:
    # All singular values of a mesh's field are equal: rank r of n explains at most r / n of the energy.
    from astralora.simulators import MZI

    controls = torch.rand(MZI().num_controls(32, 32), dtype=torch.float64, generator=generator) * 6
    U = MZI().unitary(controls, 32, 32)
    s = torch.linalg.svdvals(U)
    torch.testing.assert_close(s, torch.ones(32, dtype=torch.float64))
    assert float(s[8:].square().sum().sqrt() / s.norm()) == pytest.approx(sqrt(1 - 8 / 32))


# -- online -----------------------------------------------------------------------------------


def test_online_learns_the_matrix_from_the_training_batches(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("mzi", 16, 16)
    controls = initial_controls(session.spec, generator).double()
    session.program(controls)
    surrogate = Online(start="cold")
    surrogate.start(session, controls)
    spent = session.usage
    residuals = []
    for _ in range(2):
        inputs = torch.empty(32, 16, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        surrogate.observe(inputs, session.query(inputs))
        assert surrogate.residual is not None
        residuals.append(surrogate.residual)
    assert session.usage.vectors == spent.vectors + 64, "no query besides the batches"
    assert residuals[0] == pytest.approx(1.0), "nothing was predicted"
    assert residuals[1] < 1e-3, "a batch of 32 contains all sixteen directions"
    G = torch.randn(5, 16, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(surrogate.vjp(G), G @ dense(session, controls), atol=1e-3, rtol=1e-3)


def test_online_averages_over_noise(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("mzi", 16, 16, impairments=Impairments(output_noise_fraction=0.02))
    controls = initial_controls(session.spec, generator)
    session.program(controls)
    surrogate = Online()
    surrogate.start(session, controls)
    for _ in range(100):
        inputs = torch.empty(32, 16).uniform_(-1, 1, generator=generator)
        surrogate.observe(inputs, session.query(inputs))
    error = float((surrogate.matrix - dense(session, controls)).square().mean().sqrt())
    # One measurement by 16 probes has an error of noise / sqrt(16) for each entry.
    assert error < session.spec.noise_std / sqrt(16)


def test_online_follows_a_device_that_moves(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("slm", 16, 16)
    controls = initial_controls(session.spec, generator).double()
    session.program(controls)
    surrogate = Online()
    surrogate.start(session, controls)
    for _ in range(60):
        controls = controls + 0.01 * torch.randn(256, dtype=torch.float64, generator=generator)
        session.program(controls)
        inputs = torch.empty(32, 16, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        surrogate.observe(inputs, session.query(inputs))
    A = dense(session, controls)
    assert float((surrogate.matrix - A).norm() / A.norm()) < 1e-3


def test_online_ignores_a_residual_of_noise_only(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("matvec", 8, 8, impairments=Impairments(output_noise_fraction=0.05))
    controls = torch.zeros(64)
    session.program(controls)
    surrogate = Online(start="cold")
    surrogate.start(session, controls)
    quiet = 0.5 * session.spec.noise_std * torch.randn(32, 8, generator=generator)
    surrogate.observe(torch.empty(32, 8).uniform_(-1, 1, generator=generator), quiet)
    assert torch.equal(surrogate.matrix, torch.zeros(8, 8))


def test_online_accepts_a_batch_of_identical_vectors(simulated: Any) -> None:
    session = simulated("matvec", 8, 8)
    controls = torch.full((64,), 0.5)
    session.program(controls)
    surrogate = Online(start="cold")
    surrogate.start(session, controls)
    inputs = torch.full((20, 8), 0.3)
    surrogate.observe(inputs, session.query(inputs))
    surrogate.observe(inputs, session.query(inputs))
    assert surrogate.residual is not None
    assert surrogate.residual < 1e-3


def ridge_regression(X: torch.Tensor, Y: torch.Tensor, variance: float, prior: float) -> torch.Tensor:
    """Return the least-squares fit to all data with a Gaussian prior."""
    ridge = variance / prior
    solution: torch.Tensor = torch.linalg.solve(X.T @ X + ridge * torch.eye(X.shape[1], dtype=X.dtype), X.T @ Y).T
    return solution


@pytest.mark.parametrize("batch", [4, 30])
def test_online_without_forgetting_is_least_squares_on_all_data(
    batch: int, simulated: Any, generator: torch.Generator
) -> None:
    session = simulated("matvec", 12, 7, impairments=Impairments(output_noise_fraction=0.02))
    controls = initial_controls(session.spec, generator).double()
    session.program(controls)
    surrogate = Online(start="cold", forgetting=1.0, refresh=0)
    surrogate.start(session, controls)
    batches = [torch.empty(batch, 12, dtype=torch.float64).uniform_(-1, 1, generator=generator) for _ in range(6)]
    answers = [session.query(X) for X in batches]
    for X, Y in zip(batches, answers, strict=True):
        surrogate.observe(X, Y)
    prior = float(answers[0].square().mean() / batches[0].square().sum(dim=1).mean())
    expected = ridge_regression(torch.cat(batches), torch.cat(answers), session.spec.noise_std**2, prior)
    torch.testing.assert_close(surrogate.matrix, expected)


@pytest.mark.parametrize("kind", ["slm", "mzi"])
def test_online_forgets_as_fast_as_the_chip_drifts(kind: str, simulated: Any, generator: torch.Generator) -> None:
    # Ten times the drift of a lab chip, over 2,000 steps of 10 ms: twice its correlation time.
    wandering = PRESETS["lab"].model_copy(update={"wander_std": 0.1})
    session = simulated(kind, 16, 16, impairments=wandering)
    controls = initial_controls(session.spec, generator)
    session.program(controls)
    surrogate = Online()
    surrogate.start(session, controls)
    once = surrogate.matrix.clone()
    cosines = []
    for step in range(1, 2001):
        session.device.clock_seconds += 0.01
        X = torch.empty(16, 16).uniform_(-1, 1, generator=generator)
        G = torch.randn(16, 16, generator=generator)
        surrogate.observe(X, session.query(X))
        surrogate.prepare(session, G)
        if step % 100 == 0:
            true = (G @ dense(session, controls)).flatten()
            cosines.append(
                [float(true @ (G @ M).flatten() / true.norm() / (G @ M).norm()) for M in (surrogate.matrix, once)]
            )
    followed, started_once = torch.tensor(cosines).T
    assert float(followed.min()) >= 0.97
    assert float(started_once.min()) < 0.9


def test_online_measures_directions_that_no_batch_contains(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("slm", 32, 16, impairments="lab")
    controls = initial_controls(session.spec, generator)
    session.program(controls)
    seen = torch.randn(8, 32, generator=generator)
    G = torch.randn(10, 16, generator=generator)
    true = G @ dense(session, controls)
    found = {}
    for refresh in (0, 8):
        surrogate = Online(start="cold", refresh=refresh)
        surrogate.start(session, controls)
        before = session.usage.vectors
        for _ in range(12):
            X = torch.randn(10, 8, generator=generator) @ seen
            X = X / X.abs().amax(dim=1, keepdim=True)
            surrogate.observe(X, session.query(X))
            surrogate.prepare(session, G)
        gradient = surrogate.vjp(G)
        cosine = float((gradient * true).sum() / gradient.norm() / true.norm())
        found[refresh] = cosine, session.usage.vectors - before - 120
    # The batches contain a quarter of all directions; without the others the cosine of a gradient is about a half.
    assert found[0][0] < 0.7
    assert found[0][1] == 0
    assert found[8][0] > 0.95
    assert found[8][1] <= 12 * 8


def test_online_measures_nothing_where_it_is_certain(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("matvec", 16, 8, impairments=Impairments(output_noise_fraction=0.002))
    controls = initial_controls(session.spec, generator)
    session.program(controls)
    surrogate = Online()
    surrogate.start(session, controls)
    before = session.usage
    surrogate.prepare(session, torch.randn(5, 8, generator=generator))
    assert session.usage == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start": "warm"}, "start must be 'measure' or 'cold'"),
        ({"forgetting": 1.5}, "forgetting must be 'auto', or above 0 and at most 1"),
        ({"refresh": -1}, "refresh must be a whole number"),
        ({"tolerance": 0}, "tolerance must be a positive share"),
    ],
)
def test_online_refuses_invalid_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Online(**options)


def test_online_with_a_fixed_factor_never_stops_learning(simulated: Any, generator: torch.Generator) -> None:
    # One input is always zero: its uncertainty must not grow without end.
    session = simulated("matvec", 6, 4)
    controls = initial_controls(session.spec, generator).double()
    surrogate = Online(start="cold", forgetting=0.5, refresh=0)
    session.program(controls)
    surrogate.start(session, controls)
    for step in range(1300):
        if step == 1250:
            controls = -controls
            session.program(controls)
        X = torch.empty(8, 6, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        X[:, 2] = 0
        surrogate.observe(X, session.query(X))
    error = (surrogate.matrix - dense(session, controls))[:, [0, 1, 3, 4, 5]]
    assert float(error.abs().max()) < 1e-3


# -- online, low rank --------------------------------------------------------------------------


def test_low_rank_online_follows_a_path_of_its_rank(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("matvec", 24, 16)
    path = low_rank_path(session, rank=3, steps=40)
    session.program(path[0])
    surrogate = LowRankOnline(rank=3)
    surrogate.start(session, path[0])
    before = session.usage.vectors
    for controls in path[1:]:
        session.program(controls)
        X = torch.empty(30, 24, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        surrogate.observe(X, session.query(X))
    A = dense(session, path[-1])
    assert float((surrogate.U @ surrogate.V - A).norm() / A.norm()) < 1e-4
    assert session.usage.vectors - before == 39 * 30, "no vectors besides the batches"
    assert (surrogate.U.shape, surrogate.V.shape) == ((16, 3), (3, 24))


# -- adjoint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["matvec", "mzi"])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_adjoint_sends_as_many_vectors_as_the_gradients_have_rank(
    kind: str, bounds: Any, simulated: Any, generator: torch.Generator
) -> None:
    session = simulated(kind, 8, 6, input_range=bounds)
    controls = initial_controls(session.spec, generator).double()
    session.program(controls)
    surrogate = Adjoint()
    for batch, rank in ((4, 4), (40, 6), (40, 2)):
        left, right = (torch.randn(*shape, generator=generator).double() for shape in ((batch, rank), (rank, 6)))
        G = left @ right
        before = session.usage
        surrogate.prepare(session, G)
        spent = session.usage - before
        assert (spent.programs, spent.vectors) == (0, rank * (1 if bounds[0] < 0 else 2))
        torch.testing.assert_close(surrogate.vjp(G), G @ dense(session, controls))


def test_adjoint_accepts_an_empty_batch(simulated: Any) -> None:
    session = simulated("mzi", 8, 6)
    session.program(torch.zeros(session.spec.num_controls))
    surrogate = Adjoint()
    surrogate.prepare(session, torch.empty(0, 6))
    assert surrogate.vjp(torch.empty(0, 6)).shape == (0, 8)


def test_the_reverse_port_adds_noise(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("mzi", 32, 32, impairments=Impairments(output_noise_fraction=0.01))
    controls = initial_controls(session.spec, generator)
    session.program(controls)
    G = torch.empty(400, 32).uniform_(-1, 1, generator=generator)
    error = session.query_adjoint(G) - G @ dense(session, controls)
    assert float(error.std()) == pytest.approx(session.spec.noise_std, rel=5 / sqrt(2 * error.numel()))


def test_adjoint_needs_a_reverse_port(simulated: Any) -> None:
    with pytest.raises(ConfigurationError, match="'mrr' has no reverse port"):
        Adjoint().check(simulated("mrr", 4, 4), Gaussian())


# -- twin --------------------------------------------------------------------------------------


def test_twin_is_autograd_through_the_model(simulated: Any, generator: torch.Generator) -> None:
    device, model = simulated("mzi", 6, 4, impairments="lab"), simulated("mzi", 6, 4)
    controls = initial_controls(model.spec, generator)
    surrogate = Twin(twin=model.device)
    surrogate.check(device, Gaussian())
    surrogate.start(device, controls)
    surrogate.recall(torch.rand(5, 6, generator=generator))
    G = torch.randn(5, 4, generator=generator)
    torch.testing.assert_close(surrogate.vjp(G), G @ dense(model, controls))


# -- measured, exact ---------------------------------------------------------------------------


def test_measured_uses_the_matrix_that_the_estimator_measured(generator: torch.Generator) -> None:
    surrogate, A = Measured(), torch.randn(3, 4, generator=generator)
    surrogate.adopt(A)
    G = torch.randn(5, 3, generator=generator)
    assert torch.equal(surrogate.vjp(G), G @ A)


def test_exact_is_autograd_through_the_law(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("mzi", 6, 6, impairments="lab")
    controls = initial_controls(session.spec, generator).double()
    inputs = torch.rand(5, 6, dtype=torch.float64, generator=generator)
    G = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    surrogate = Exact()
    surrogate.start(session, controls)
    surrogate.recall(inputs)
    torch.testing.assert_close(surrogate.vjp(G), G @ dense(session, controls))
    assert session.usage.vectors == 0


# -- all --------------------------------------------------------------------------------------


def test_the_residual_is_computed_before_the_surrogate_learns(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("matvec", 8, 8)
    controls = initial_controls(session.spec, generator)
    inputs = torch.empty(4, 8).uniform_(-1, 1, generator=generator)
    for name in ("psi", "online", "measured"):
        surrogate = SURROGATES.make(name, rank=8)
        session.program(controls)
        surrogate.start(session, controls)
        moved = controls.clone()
        moved[:8] += 0.2
        session.program(moved)
        outputs = session.query(inputs)
        expected = (outputs - inputs @ controls.reshape(8, 8).T).norm() / outputs.norm()
        surrogate.observe(inputs, outputs)
        assert surrogate.residual == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("surrogate", "estimator", "spec", "complaint"),
    [
        (Psi(), Gaussian(), {"linear": False}, "'psi' works on linear devices only.*use 'online'"),
        (Measured(), Gaussian(), {}, "needs an estimator that measures.*'gaussian' does not"),
        (Exact(), Elementwise(), {}, "needs a device with a differentiable law"),
    ],
)
def test_an_unsuitable_device_or_estimator_is_refused(
    surrogate: Any, estimator: Any, spec: dict[str, Any], complaint: str, matrix_device: Any
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        surrogate.check(Session(matrix_device(**spec)), estimator)


@pytest.mark.parametrize("options", [{"rank": 0}, {"probes": 0}, {"rebuild_every": 0}])
def test_psi_refuses_invalid_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Psi(**options)


def test_psi_continues_exactly_from_saved_state_in_the_middle_of_a_step(simulated: Any) -> None:
    session = simulated("matvec", 24, 16)
    path = low_rank_path(session, rank=3, steps=5)
    first, second = Psi(rank=3, probes=20), Psi(rank=3, probes=20, seed=9)
    follow(first, session, path[:4])
    first.prepare(session, GRADS)
    second.load_state_dict(first.state_dict())
    session.program(path[4])
    for surrogate in (first, second):
        surrogate.controls_changed(session, path[4])
    assert torch.equal(first.U @ first.S @ first.V, second.U @ second.S @ second.V)
