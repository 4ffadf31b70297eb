"""Test BlackBoxConv2d against nn.Conv2d."""

from typing import Any

import pytest
import torch
from torch import nn

import astralora as al
from astralora import BlackBoxConv2d, ConfigurationError

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (1, 2), "stride": (2, 1)},
    {"kernel_size": 3, "padding": 1, "dilation": 2},
    {"kernel_size": (3, 5), "padding": "same"},
    {"kernel_size": 2, "padding": "valid", "stride": 2},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]


def pair(simulated: Any, geometry: dict[str, Any]) -> tuple[BlackBoxConv2d, nn.Conv2d]:
    """Return a device layer with exact gradients, and a digital convolution with the same weights."""
    digital = nn.Conv2d(2, 5, **geometry).double()
    width = digital.weight[0].numel()
    net = nn.Sequential(digital)
    al.attach(net, {"0": simulated("matvec", width, 5)}, method="exact", gain=False)
    layer = net[0]
    assert isinstance(layer, BlackBoxConv2d)
    with torch.no_grad():
        digital.weight.copy_(layer.controls.view_as(digital.weight))
    return layer, digital


@pytest.mark.usefixtures("a_throwaway_global_random_state")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_output_and_gradients_equal_those_of_the_digital_convolution(geometry: dict[str, Any], simulated: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    layer, digital = pair(simulated, geometry)
    images = torch.randn(3, 2, 7, 6, dtype=torch.float64, generator=generator)
    results = []
    for module in (layer, digital):
        x = images.clone().requires_grad_()
        y = module(x)
        y.square().sum().backward()
        weight = layer.controls if module is layer else digital.weight
        assert weight.grad is not None
        assert module.bias is not None
        results.append((y.detach(), x.grad, weight.grad.flatten(), module.bias.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_an_image_without_a_batch_dimension_is_accepted(simulated: Any) -> None:
    layer, digital = pair(simulated, {"kernel_size": 3})
    image = torch.randn(2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(image), digital(image))


@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_a_forward_pass_takes_one_vector_for_each_output_pixel(simulated: Any) -> None:
    session = simulated("slm", 18, 5)
    layer = BlackBoxConv2d(session, 3, padding=1)
    before = session.usage
    layer(torch.randn(3, 2, 7, 6))
    spent = session.usage - before
    assert (spent.programs, spent.vectors) == (0, 3 * 7 * 6)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (
            lambda s: BlackBoxConv2d(s, 5),
            "has 18 inputs; this number must be a multiple of the 25 pixels of the kernel",
        ),
        (lambda s: BlackBoxConv2d(s, 3, padding="wide"), "padding must be a number, a pair, 'same' or 'valid'"),
        (
            lambda s: BlackBoxConv2d(s, 3)(torch.ones(1, 3, 8, 8)),
            r"must have shape \(batch, 2, height, width\), but has",
        ),
    ],
)
def test_wrong_sizes_and_options_are_refused(build: Any, complaint: str, simulated: Any) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        build(simulated("slm", 18, 5))


@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_a_convolution_trains_with_the_default_method(simulated: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3))
    al.attach(net, {"2": simulated("mrr", 18, 4, impairments="lab")})
    net(torch.randn(4, 1, 8, 8)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_padding_same_with_a_stride_is_refused(simulated: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs a stride of 1, not"):
        BlackBoxConv2d(simulated("slm", 18, 5), 3, padding="same", stride=2)
