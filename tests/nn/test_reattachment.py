"""Test attach on a model that has device layers already, as in a notebook cell that runs twice."""

from typing import Any

import pytest
import torch
from torch import nn

import astralora as al
from astralora import BlackBoxConv2d, BlackBoxLinear, ConfigurationError
from astralora.estimators import Gaussian, Orthogonal

pytestmark = pytest.mark.usefixtures("a_throwaway_global_random_state")


def attached(device: Any, **options: Any) -> tuple[nn.Sequential, BlackBoxLinear]:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6))
    al.attach(net, {"1": device}, **options)
    layer = net[1]
    assert isinstance(layer, BlackBoxLinear)
    return net, layer


def move_parameters(layer: BlackBoxLinear) -> dict[str, torch.Tensor]:
    """Change every parameter as training would, within the controls' range, and return copies."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.5)
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


# -- the same device ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["1", "?", nn.Linear, BlackBoxLinear])
def test_the_same_device_without_options_changes_nothing_and_costs_nothing(key: Any, simulated: Any) -> None:
    device = simulated("slm", 8, 6)
    net, layer = attached(device, samples=3, method="paper")
    if key is not BlackBoxLinear:
        net[0] = nn.Identity()
    spent, estimator = device.usage, layer.estimator
    assert al.attach(net, {key: device}) is net
    assert net[1] is layer
    assert layer.estimator is estimator
    assert device.usage == spent


def test_the_raw_device_behind_the_layers_session_is_the_same_device() -> None:
    raw = al.make_device("slm", in_features=8, out_features=6)
    net, layer = attached(raw)
    session = layer.session
    al.attach(net, {"1": raw})
    assert net[1] is layer
    assert layer.session is session


def test_options_choose_the_method_anew_and_leave_the_parameters(simulated: Any) -> None:
    device = simulated("matvec", 8, 6)
    net, layer = attached(device, estimator="gaussian", surrogate="online", samples=3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = move_parameters(layer)
    spent = device.usage
    al.attach(net, {"1": device}, estimator="orthogonal", surrogate="online", samples=5)
    assert net[1] is layer
    assert isinstance(layer.estimator, Orthogonal)
    assert layer.estimator.samples == 5
    assert device.usage == spent, "the surrogate measures in the next step, not now"
    assert all(torch.equal(value, before[name]) for name, value in layer.named_parameters())
    net(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer.controls, before["controls"]), "an optimizer made before still has the parameters"


@pytest.mark.parametrize("options", [{"method": "paper", "samples": 3}, {}])
def test_a_layer_can_be_saved_before_the_new_surrogate_starts(options: Any, simulated: Any) -> None:
    device = simulated("slm", 8, 6)
    net, layer = attached(device)
    al.attach(net, {"1": device}, seed=1, **options)
    state = net.state_dict()
    move_parameters(layer)
    net.load_state_dict(state)
    net(torch.ones(3, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_initialize_and_digital_fraction_have_no_effect_the_second_time(simulated: Any) -> None:
    device = simulated("slm", 8, 6)
    net, layer = attached(device, initialize="fit", digital_fraction=0.1)
    before = move_parameters(layer)
    al.attach(net, {"1": device}, initialize="fit", digital_fraction=0.1)
    assert net[1] is layer
    assert all(torch.equal(value, before[name]) for name, value in layer.named_parameters())


# -- another device -------------------------------------------------------------------------------


def test_another_chip_of_the_same_kind_takes_over_all_parameters(simulated: Any) -> None:
    net, layer = attached(simulated("slm", 8, 6), digital_fraction=0.1)
    layer.controls.requires_grad_(False)
    parameters = dict(layer.named_parameters())
    other = simulated("slm", 8, 6, seed=1)
    al.attach(net.eval(), {"1": other}, estimator="gaussian", surrogate="online")
    new = net[1]
    assert isinstance(new, BlackBoxLinear)
    assert new.session is other
    assert isinstance(new.estimator, Gaussian)
    assert not new.training
    assert dict(new.named_parameters()).keys() == parameters.keys()
    assert all(value is parameters[name] for name, value in new.named_parameters())
    assert new.digital_places is not None
    assert layer.digital_places is not None
    assert torch.equal(new.digital_places, layer.digital_places)
    torch.testing.assert_close(new.measure_weight(), layer.measure_weight(), atol=1e-5, rtol=1e-4)


def test_a_device_of_another_kind_keeps_bias_and_digital_weights(simulated: Any) -> None:
    net, layer = attached(simulated("slm", 8, 6), digital_fraction=0.1)
    move_parameters(layer)
    al.attach(net, {"1": simulated("mzi", 8, 6)}, method="paper", samples=2)
    new = net[1]
    assert isinstance(new, BlackBoxLinear)
    assert new.session.spec.name == "mzi"
    assert new.bias is layer.bias
    assert new.digital is layer.digital
    assert len(new.controls) == new.session.spec.num_controls
    net(torch.ones(3, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_surrogate_follows_the_new_chip(simulated: Any, generator: torch.Generator) -> None:
    chip = {"impairments": {"phase_bias_std": 0.5}}
    options: dict[str, Any] = {"estimator": "elementwise", "surrogate": "online", "gain": False}
    net, _ = attached(simulated("slm", 8, 6, **chip), **options)
    al.attach(net, {"1": simulated("slm", 8, 6, seed=1, **chip)}, **options)
    layer = net[1]
    assert isinstance(layer, BlackBoxLinear)
    x = torch.randn(20, 8, generator=generator).requires_grad_()
    layer(x).sum().backward()
    true = torch.ones(20, 6) @ layer.measure_weight()
    torch.testing.assert_close(x.grad, true, atol=1e-3, rtol=1e-3)


def test_a_convolution_moves_to_another_chip(simulated: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1))
    al.attach(net, {nn.Conv2d: simulated("slm", 9, 4)})
    first = net[0]
    al.attach(net, {nn.Conv2d: simulated("slm", 9, 4, seed=1)})
    second = net[0]
    assert isinstance(second, BlackBoxConv2d)
    assert second is not first
    assert second.padding == (1, 1)
    assert second.controls is first.controls


# -- which layers, and what is refused -------------------------------------------------------------


def test_a_type_matches_device_layers_only_where_no_digital_layer_is_left(simulated: Any) -> None:
    net, layer = attached(simulated("slm", 8, 6))
    al.attach(net, {nn.Linear: simulated("slm", 4, 8)})
    assert isinstance(net[0], BlackBoxLinear)
    assert net[1] is layer


@pytest.mark.parametrize(
    ("first", "kind", "second", "complaint"),
    [
        ({}, "mzi", {"initialize": "fit"}, "on device 'slm' already, so it has no digital weights to fit"),
        ({}, "slm", {"digital_fraction": 0.1}, "on device 'slm' already, so it has no digital weights to keep"),
        ({}, "slm", {"gain": False}, "on device 'slm' already, with a gain"),
        ({"gain": False}, "slm", {"gain": True}, "on device 'slm' already, without a gain"),
    ],
)
def test_a_change_that_needs_a_detach_first_is_refused(
    first: Any, kind: str, second: Any, complaint: str, simulated: Any
) -> None:
    net, layer = attached(simulated("slm", 8, 6), **first)
    other = simulated(kind, 8, 6)
    with pytest.raises(ConfigurationError, match=complaint + r"; call al\.detach\(model, \['1'\]\) first"):
        al.attach(net, {"1": other}, **second)
    assert net[1] is layer
    assert other.usage == al.Usage()


def test_a_device_of_another_size_is_refused(simulated: Any) -> None:
    net, _ = attached(simulated("slm", 8, 6))
    with pytest.raises(ConfigurationError, match="layer '1' maps 8 to 6 features, but device 'slm' maps 8 to 5"):
        al.attach(net, {"1": simulated("slm", 8, 5)})
