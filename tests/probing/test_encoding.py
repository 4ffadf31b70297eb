"""Test encodings of vectors in a device's input range."""

from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.devices import DeviceSpec
from astralora.probing.encoding import choose_encoding


def spec(bounds: Any, linear: bool = True) -> DeviceSpec:
    return DeviceSpec(name="chip", in_features=6, out_features=4, num_controls=24, input_range=bounds, linear=linear)


@pytest.mark.parametrize(
    ("bounds", "name"),
    [
        ((-1.0, 1.0), "scale"),
        ((-0.2, 3.0), "scale"),
        (None, "scale"),
        ((-1.0, 1.0), "differential"),
        ((0.0, 1.0), "differential"),
        ((0.5, 4.0), "differential"),
        (None, "differential"),
    ],
)
def test_encoding_is_exact_on_a_linear_device(bounds: Any, name: str, generator: torch.Generator) -> None:
    A = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    x = 100 * torch.randn(9, 6, dtype=torch.float64, generator=generator)
    x[3] = 0
    encoding = choose_encoding(spec(bounds), name)
    inputs, factors = encoding.encode(x)
    if bounds is not None:
        assert inputs.min() >= bounds[0] - 1e-12
        assert inputs.max() <= bounds[1] + 1e-12
    torch.testing.assert_close(encoding.decode(inputs @ A.T, factors), x @ A.T)


def test_every_vector_fills_the_range() -> None:
    inputs, _ = choose_encoding(spec((-2.0, 2.0))).encode(
        torch.tensor([[1e-6, 0, 0, 0, 0, -2e-6], [5.0, 0, 0, 0, 0, 1]])
    )
    torch.testing.assert_close(inputs.abs().amax(dim=1), torch.tensor([2.0, 2.0]))


def test_the_encoding_is_chosen_by_the_input_range() -> None:
    names = [type(choose_encoding(spec(bounds))).__name__ for bounds in ((-1.0, 1.0), (0.0, 1.0), None)]
    assert names == ["Scale", "Differential", "Scale"]


def test_scale_takes_one_pass_for_vectors_without_negative_entries() -> None:
    encoding = choose_encoding(spec((0.0, 1.0)), "scale")
    assert len(encoding.encode(torch.ones(3, 6))[0]) == 3
    with pytest.raises(ConfigurationError, match=r"negative activation.*use encoding='differential'"):
        encoding.encode(-torch.ones(3, 6))


def test_the_scale_on_a_nonlinear_device_does_not_depend_on_the_batch() -> None:
    encoding = choose_encoding(spec((-0.5, 0.5), linear=False))
    small, _ = encoding.encode(torch.full((1, 6), 0.2))
    both, _ = encoding.encode(torch.tensor([[0.2] * 6, [9.0] * 6]))
    torch.testing.assert_close(both[:1], small)
    torch.testing.assert_close(both[1], torch.full((6,), 0.5))


@pytest.mark.parametrize(
    ("bounds", "linear", "name", "complaint"),
    [
        ((0.5, 1.0), True, "scale", "needs an input range that includes zero"),
        ((-1.0, 1.0), False, "differential", "needs a linear device"),
        ((-1.0, 1.0), True, "morse", "no encoding named 'morse'; known are auto, scale, differential"),
    ],
)
def test_an_unsuitable_encoding_is_refused(bounds: Any, linear: bool, name: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        choose_encoding(spec(bounds, linear), name)
