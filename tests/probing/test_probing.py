"""Test probes of linear devices."""

from math import sqrt
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.devices import Session
from astralora.probing.hadamard import hadamard_order
from astralora.probing.probes import LinearProbe, TransferProbe, orthogonal_probes
from astralora.simulators import Impairments


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 16, 64, 100])
def test_probes_are_orthogonal_and_within_range(count: int) -> None:
    V, power = orthogonal_probes(count, torch.float64)
    torch.testing.assert_close(V.T @ V, power * torch.eye(count, dtype=torch.float64))
    assert bool((V.abs() == 1).all()), "every input at full power"
    assert power == len(V) <= count + 4


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize(("n", "m"), [(8, 5), (6, 9)])
def test_a_probe_measures_the_transfer_matrix(
    bounds: Any, n: int, m: int, simulated: Any, generator: torch.Generator
) -> None:
    session = simulated("slm", n, m, input_range=bounds)
    controls = torch.rand(n * m, dtype=torch.float64, generator=generator)
    session.program(controls)
    probe = TransferProbe(session.spec, torch.float64)
    torch.testing.assert_close(probe.matrix(probe.ask(session)), torch.cos(controls).reshape(m, n) / sqrt(n))
    assert session.usage.vectors == hadamard_order(n) * (1 if bounds[0] < 0 else 2)


def test_the_error_of_an_entry_is_the_noise_over_the_square_root_of_the_width(simulated: Any) -> None:
    session = simulated("matvec", 64, 64, impairments=Impairments(output_noise_fraction=0.01))
    controls = torch.zeros(64 * 64)
    session.program(controls)
    probe = TransferProbe(session.spec)
    error = probe.matrix(probe.ask(session))
    expected = session.spec.noise_std / sqrt(64)
    assert float(error.std()) == pytest.approx(expected, rel=5 / sqrt(2 * error.numel()))


def test_probes_that_saturate_the_detector_are_weakened(simulated: Any) -> None:
    # All weights are 0.9, with the signs of one probe: its answer is 57.6, and the detector ends at 8.
    session = simulated("matvec", 64, 8, impairments=Impairments(output_levels=4097))
    probe = TransferProbe(session.spec)
    weights = 0.9 * probe.rows[0]
    session.program(weights.repeat(8))
    matrix = probe.matrix(probe.ask(session))
    assert float((matrix - weights).abs().max()) < 16 * session.spec.output_step
    spent = session.usage.vectors
    assert spent > 64, "the first measurement finds the amplitudes"
    probe.adapt()
    probe.ask(session)
    assert session.usage.vectors == spent + 64, "the second one uses them"


def test_a_nonlinear_device_is_refused(matrix_device: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs a linear device"):
        LinearProbe(matrix_device(linear=False).spec, torch.ones(1, 4))


@pytest.mark.parametrize("bounds", [(0.0, 16.0), (-1.0, 16.0)])
def test_a_zero_answer_does_not_count_as_saturated(bounds: Any, matrix_device: Any) -> None:
    # Intensities are not negative, and zero is an end of the detector's range, or close to it.
    device = matrix_device(
        16, 8, input_range=(0.0, 1.0), control_range=(0.0, 1.0), output_range=bounds, output_levels=4096
    )
    session = Session(device)
    session.open()
    controls = torch.zeros(128)
    controls[::5] = 0.8
    session.program(controls)
    probe = TransferProbe(session.spec)
    for _ in range(30):
        matrix = probe.matrix(probe.ask(session))
        probe.adapt()
    torch.testing.assert_close(matrix, controls.reshape(8, 16), atol=0.01, rtol=0)
    assert session.usage.vectors == 30 * 32
    assert float(probe.amplitude.min()) > 0.5


def test_probes_of_a_device_without_an_input_range_can_be_weakened(matrix_device: Any) -> None:
    class Clipped(matrix_device):
        def _query(self, inputs: Any) -> Any:
            return super()._query(inputs).clip(-2, 2)

    device = Clipped(4, 3, input_range=None)
    device.spec = device.spec.model_copy(update={"output_range": (-2.0, 2.0)})
    session = Session(device)
    session.open()
    session.program(torch.ones(12))
    probe = TransferProbe(session.spec)
    torch.testing.assert_close(probe.matrix(probe.ask(session)), torch.ones(3, 4))
