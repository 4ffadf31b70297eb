"""Test the laws of the kinds against their formulas and invariants."""

from math import cos, pi, sin, sqrt
from typing import Any

import numpy as np
import pytest
import torch

from astralora.devices import initial_controls
from astralora.simulators import KINDS, MRR, MZI, SLM, LinearPhysics, MatVec, Monarch, device_factory


def controls_for(physics: Any, n: int, m: int, generator: torch.Generator, *leading: int) -> torch.Tensor:
    low, high = physics.control_range
    shape = (*leading, physics.num_controls(n, m))
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


def test_matvec_matrix_is_its_controls() -> None:
    controls = torch.arange(6.0)
    assert torch.equal(MatVec().matrix(controls, 3, 2), controls.reshape(2, 3))


def test_slm_matrix_is_cosines_over_the_root_of_the_inputs(generator: torch.Generator) -> None:
    controls = controls_for(SLM(), 3, 2, generator)
    expected = [[cos(controls[3 * i + j]) / sqrt(3) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(SLM().matrix(controls, 3, 2), expected, rtol=1e-12)


@pytest.mark.parametrize("response", ["field", "power"])
def test_mrr_follows_the_add_drop_formula(response: Any, generator: torch.Generator) -> None:
    a, r = 0.925, 0.93
    controls = controls_for(MRR(), 4, 4, generator)
    for phi, weight in zip(controls, MRR(response=response, a=a, r=r).matrix(controls, 4, 4).flatten(), strict=True):
        T = (a**2 + r**2 - 2 * a * r * cos(phi)) / (1 + a**2 * r**2 - 2 * a * r * cos(phi))
        assert float(weight) == pytest.approx(2 * sqrt(T) - 1 if response == "field" else 2 * T - 1, abs=1e-12)


def test_default_mrr_has_the_published_range() -> None:
    ends = MRR().matrix(torch.tensor([0.0, pi], dtype=torch.float64), 2, 1)
    np.testing.assert_allclose(ends, [[-0.29, 0.98]], atol=0.005)


def test_critically_coupled_ring_is_dark_on_resonance() -> None:
    matrix = MRR(response="power", a=0.9, r=0.9).matrix(torch.zeros(1, dtype=torch.float64), 1, 1)
    assert float(matrix) == pytest.approx(-1.0, abs=1e-11)


@pytest.mark.parametrize("phases", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (6, 6), (5, 7), (8, 3)])
def test_the_mesh_is_unitary(phases: Any, n: int, m: int, generator: torch.Generator) -> None:
    physics = MZI(phases_per_cell=phases)
    ports = physics.ports(n, m)
    U = physics.unitary(controls_for(physics, n, m, generator), n, m)
    assert U.shape == (ports, n)
    # Light enters n of the ports, whose columns of U stay orthonormal.
    torch.testing.assert_close((U.mH @ U).real, torch.eye(n, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("phases", "count"), [(1, 2016), (2, 4032)])
def test_mesh_of_64_ports_has_the_published_number_of_controls(phases: Any, count: int) -> None:
    assert MZI(phases_per_cell=phases).num_controls(64, 64) == count


def test_the_mesh_is_the_product_of_its_cells(generator: torch.Generator) -> None:
    physics, ports = MZI(), 6
    controls = controls_for(physics, ports, ports, generator)
    U, cell = np.eye(ports, dtype=complex), 0
    for column in range(ports):
        for port in range(column % 2, ports - 1, 2):
            theta, phi = controls[2 * cell].item(), controls[2 * cell + 1].item()
            turn = np.exp(1j * theta)
            block = np.eye(ports, dtype=complex)
            block[port : port + 2, port : port + 2] = [
                [turn * sin(phi), turn * cos(phi)],
                [cos(phi), -sin(phi)],
            ]
            U, cell = block @ U, cell + 1
    np.testing.assert_allclose(physics.unitary(controls, ports, ports), U, atol=1e-12)
    np.testing.assert_allclose(physics.matrix(controls, ports, ports), U.real, atol=1e-12)


def test_every_control_of_a_mesh_has_one_place_in_the_layout() -> None:
    layout = MZI().layout(6, 6)
    assert sorted(layout[layout >= 0].tolist()) == list(range(MZI().num_controls(6, 6)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_wide_chips_are_those_of_the_law(kind: str, generator: torch.Generator) -> None:
    physics = KINDS[kind]()
    controls = controls_for(physics, 3, 4, generator).requires_grad_()
    inputs = torch.rand(2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, x: physics.transfer(w, x, 4), (controls, inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_many_settings_equal_single_settings(kind: str, generator: torch.Generator) -> None:
    physics = KINDS[kind]()
    controls = controls_for(physics, 3, 4, generator, 5)
    inputs = torch.rand(2, 3, dtype=torch.float64, generator=generator)
    together = physics.transfer(controls, inputs, 4)
    torch.testing.assert_close(together, torch.stack([physics.transfer(w, inputs, 4) for w in controls]))


@pytest.mark.parametrize("kind", KINDS)
def test_initial_controls_are_within_the_range(kind: str, generator: torch.Generator) -> None:
    spec = device_factory(KINDS[kind])(8, 8).spec
    assert spec.control_range is not None
    low, high = spec.initial_range or spec.control_range
    controls = initial_controls(spec, generator)
    assert controls.shape == (spec.num_controls,)
    assert spec.control_range[0] <= low <= controls.min()
    assert controls.max() <= high <= spec.control_range[1]


def test_custom_kind_needs_one_class_with_one_method(simulated: Any) -> None:
    from astralora.simulators import SimulatedDevice

    class Doubler(LinearPhysics):
        def matrix(self, controls: torch.Tensor, in_features: int, out_features: int) -> torch.Tensor:
            return 2 * controls.reshape(*controls.shape[:-1], out_features, in_features)

    device = SimulatedDevice(Doubler(), 3, 2)
    device.open()
    device.program(torch.ones(6))
    assert torch.equal(device.query(torch.ones(1, 3)), torch.full((1, 2), 6.0))


@pytest.mark.parametrize(("n", "m"), [(16, 16), (12, 8), (8, 20)])
def test_monarch_is_two_stacks_of_blocks_with_a_permutation_between(n: int, m: int) -> None:
    law = KINDS["monarch"]()
    assert isinstance(law, Monarch)
    incoming, outgoing = law.blocks(n), law.blocks(m)
    width, height = n // incoming, m // outgoing
    generator = torch.Generator().manual_seed(0)
    controls = 6 * torch.rand(law.num_controls(n, m), dtype=torch.float64, generator=generator)
    first, second = controls.split([outgoing * n, incoming * m])
    # Each input block spreads over one lane for every output block;
    spread = torch.block_diag(*torch.exp(1j * first.view(incoming, outgoing, width)))
    # the permutation collects the lanes of each output block;
    lanes = torch.arange(incoming * outgoing).view(incoming, outgoing).T.flatten()
    # and every output block mixes its lanes.
    mix = torch.block_diag(*torch.exp(1j * second.view(outgoing, height, incoming)))
    expected = (mix @ spread[lanes]).real / sqrt(n)
    torch.testing.assert_close(law.matrix(controls, n, m), expected)
