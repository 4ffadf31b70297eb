"""Test the laws of all kinds together, and of meshes, rings, thin products, links and free space."""

from math import pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from astralora.simulators import KINDS, MRR, MZI, MZI3, Diffractive, Identity, LinearPhysics, LowRank
from astralora.simulators.lattice import mesh_matrix

SIZES = dict.fromkeys(KINDS, (4, 3))


def law(kind: str, **options: Any) -> Any:
    return KINDS[kind](**({"rank": 2} if kind == "lowrank" else {}), **options)


def controls_for(physics: Any, n: int, m: int, generator: torch.Generator, *leading: int) -> torch.Tensor:
    low, high = physics.control_range
    shape = (*leading, physics.num_controls(n, m))
    # Away from the ends, since the weight of a ring has no derivative at resonance.
    low, high = low + 0.1 * (high - low), high - 0.1 * (high - low)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


def inputs_for(n: int, generator: torch.Generator, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, n, generator=generator, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_every_law_is_differentiable(kind: str, generator: torch.Generator) -> None:
    physics, (n, m) = law(kind), SIZES[kind]
    controls = controls_for(physics, n, m, generator).requires_grad_()
    inputs = inputs_for(n, generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, x: physics.transfer(w, x, m), (controls, inputs), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_in_one_call_are_independent(kind: str, generator: torch.Generator) -> None:
    physics, (n, m) = law(kind), SIZES[kind]
    controls, inputs = controls_for(physics, n, m, generator, 5), inputs_for(n, generator)
    together = physics.transfer(controls, inputs, m)
    torch.testing.assert_close(together, torch.stack([physics.transfer(w, inputs, m) for w in controls]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_batch_does_not_matter(kind: str, generator: torch.Generator) -> None:
    physics, (n, m) = law(kind), SIZES[kind]
    controls, inputs = controls_for(physics, n, m, generator), inputs_for(n, generator, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        physics.transfer(controls, inputs, m)[order], physics.transfer(controls, inputs[order], m)
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].linear])
def test_linear_kinds_answer_zero_inputs_with_zeros(kind: str, generator: torch.Generator) -> None:
    physics, (n, m) = law(kind), SIZES[kind]
    assert isinstance(physics, LinearPhysics)
    dark = physics.transfer(controls_for(physics, n, m, generator), torch.zeros(2, n, dtype=torch.float64), m)
    assert torch.equal(dark, torch.zeros(2, m, dtype=torch.float64))


# -- meshes -------------------------------------------------------------------------------------


def coupler(error: float) -> NDArray[Any]:
    angle = pi / 4 + error
    return np.array([[np.cos(angle), 1j * np.sin(angle)], [1j * np.sin(angle), np.cos(angle)]])


def test_mzi_cell_is_two_couplers_and_two_phases() -> None:
    theta, phi, first, second = 0.7, 1.9, 0.05, -0.03
    physics = MZI().with_constants({"splitter_error": torch.tensor([[first, second]], dtype=torch.float64)})
    cell = physics.cells(torch.tensor([[theta, phi]], dtype=torch.float64))[0]
    between = np.diag([np.exp(2j * phi), 1])
    expected = -1j * np.exp(-1j * phi) * coupler(second) @ between @ coupler(first)
    np.testing.assert_allclose(cell, np.diag([np.exp(1j * theta), 1]) @ expected, atol=1e-12)


def test_three_splitter_cell_follows_its_formula() -> None:
    t1, t2 = 0.7, 2.9
    p, q = (t1 - t2) / 2, (t1 + t2) / 2
    expected = np.exp(1j * q) / sqrt(2) * np.array(
        [
            [np.sin(p) + 1j * np.sin(q), -np.cos(p) + 1j * np.cos(q)],
            [np.cos(p) + 1j * np.cos(q), np.sin(p) - 1j * np.sin(q)],
        ]
    )  # fmt: skip
    np.testing.assert_allclose(MZI3().cells(torch.tensor([[t1, t2]], dtype=torch.float64))[0], expected, atol=1e-12)


@pytest.mark.parametrize("kind", [MZI, MZI3])
def test_mesh_with_coupler_errors_is_unitary(kind: Any, generator: torch.Generator) -> None:
    errors = 0.1 * torch.randn(28, kind.couplers, generator=generator, dtype=torch.float64)
    physics = kind().with_constants({"splitter_error": errors})
    U = physics.unitary(controls_for(physics, 8, 8, generator), 8, 8)
    torch.testing.assert_close(U.mH @ U, torch.eye(8, dtype=U.dtype), atol=1e-12, rtol=0)


@pytest.mark.parametrize("ports", [2, 4, 6, 8, 10, 16, 18, 34])
def test_product_of_cells_equals_the_product_of_full_matrices(ports: int, generator: torch.Generator) -> None:
    # Norm 1, so that products of many stay of order one; not unitary, which could hide errors.
    blocks = torch.randn(ports * (ports - 1) // 2, 2, 2, generator=generator, dtype=torch.complex128) / 2
    expected, cell = np.eye(ports, dtype=complex), 0
    for column in range(ports):
        whole = np.eye(ports, dtype=complex)
        for port in range(column % 2, ports - 1, 2):
            whole[port : port + 2, port : port + 2] = blocks[cell]
            cell += 1
        expected = whole @ expected
    np.testing.assert_allclose(mesh_matrix(blocks, ports, ports - 1), expected[:, : ports - 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ports", [2, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_product_of_cells_has_the_right_gradient(ports: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    cells = ports * (ports - 1) // 2
    blocks = torch.randn(2, cells, 2, 2, generator=generator, dtype=dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: mesh_matrix(b, ports, ports // 2), blocks)


def test_product_of_zero_settings_is_empty() -> None:
    assert mesh_matrix(torch.empty(0, 3, 28, 2, 2), 8, 5).shape == (0, 3, 8, 5)


# -- rings, thin products, a plain link ---------------------------------------------------------


@pytest.mark.parametrize(("quality", "a", "r"), [("high", 0.987, 0.99), ("medium", 0.925, 0.93), ("low", 0.845, 0.85)])
def test_quality_sets_both_losses(quality: Any, a: float, r: float) -> None:
    assert (MRR(quality=quality).a, MRR(quality=quality).r) == (a, r)
    with pytest.raises(ValueError, match="give either quality, or a and r"):
        MRR(quality=quality, a=0.5)


@pytest.mark.parametrize("response", ["field", "power"])
def test_balanced_detection_reaches_from_minus_one_to_one(response: Any) -> None:
    ends = MRR(response=response, balanced=True).matrix(torch.tensor([0.0, pi], dtype=torch.float64), 2, 1)
    torch.testing.assert_close(ends, torch.tensor([[-1.0, 1.0]], dtype=torch.float64))


def test_low_rank_is_the_product_of_two_thin_matrices(generator: torch.Generator) -> None:
    physics = LowRank(rank=2)
    controls = controls_for(physics, 5, 4, generator)
    A = physics.matrix(controls, 5, 4)
    np.testing.assert_allclose(A, controls[:8].reshape(4, 2).numpy() @ controls[8:].reshape(2, 5).numpy())
    assert np.linalg.matrix_rank(A.numpy()) == 2


@pytest.mark.parametrize(("n", "m"), [(4, 4), (4, 9), (9, 4), (5, 1)])
def test_identity_interpolates_linearly(n: int, m: int, generator: torch.Generator) -> None:
    inputs = inputs_for(n, generator, 1)
    places = np.linspace(0, n - 1, m) if m > 1 else np.array([(n - 1) / 2])
    answer = Identity().transfer(torch.tensor([0.5], dtype=torch.float64), inputs, m)
    np.testing.assert_allclose(answer[0], 0.5 * np.interp(places, np.arange(n), inputs[0]))


# -- free space ---------------------------------------------------------------------------------


def spot(side: int, waist: float) -> torch.Tensor:
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    profile = torch.exp(-((place / waist) ** 2))
    return torch.outer(profile, profile).to(torch.complex128)


def test_field_inside_the_aperture_keeps_its_energy() -> None:
    field = spot(64, 8.0)
    after = Diffractive(distance_m=0.2).propagate(field)
    assert float(after.abs().square().sum()) == pytest.approx(float(field.abs().square().sum()), rel=1e-9)


def test_light_that_leaves_the_aperture_is_lost(generator: torch.Generator) -> None:
    field = torch.randn(32, 32, generator=generator, dtype=torch.complex128)
    after = Diffractive(distance_m=5.0).propagate(field)
    assert float(after.abs().square().sum()) < 0.95 * float(field.abs().square().sum())


def test_gaussian_beam_widens_by_its_formula() -> None:
    side, waist = 256, 0.4e-3
    physics = Diffractive(distance_m=0.8)
    pitch = physics.aperture_mm * 1e-3 / side
    after = physics.propagate(spot(side, waist / pitch)).abs().square()
    place = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * pitch
    # The intensity of a beam of radius w has the variance (w / 2)^2 along either axis.
    radius = 2 * sqrt(float((after.sum(dim=0) * place.square()).sum() / after.sum()))
    rayleigh = pi * waist**2 / (physics.wavelength_nm * 1e-9)
    assert radius == pytest.approx(waist * sqrt(1 + (physics.distance_m / rayleigh) ** 2), rel=1e-3)


@pytest.mark.parametrize(("mask", "planes"), [("phase", 1), ("amplitude", 1), ("both", 2)])
@pytest.mark.parametrize("beams", [1, 2])
def test_number_of_controls_counts_pixels_planes_and_beams(mask: Any, planes: int, beams: Any) -> None:
    assert Diffractive(mask=mask, beams=beams).num_controls(16, 9) == 8 * 8 * planes * beams


def test_two_beams_through_equal_masks_cancel(generator: torch.Generator) -> None:
    physics = Diffractive(beams=2)
    half = controls_for(Diffractive(), 4, 4, generator)
    assert torch.equal(
        physics.transfer(torch.cat([half, half]), inputs_for(4, generator), 4), torch.zeros(3, 4, dtype=torch.float64)
    )


def test_dark_mask_transmits_nothing(generator: torch.Generator) -> None:
    physics = Diffractive(mask="amplitude")
    dark = physics.transfer(torch.zeros(16, dtype=torch.float64), inputs_for(4, generator), 4)
    assert float(dark.max()) < 1e-12


def test_mask_with_too_few_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="16 inputs and 9 outputs need at least 4 pixels along a side, not 3"):
        Diffractive(pixels=3).num_controls(16, 9)
