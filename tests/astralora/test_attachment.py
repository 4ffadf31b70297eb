from typing import Any

import pytest
import torch
from torch import nn

import astralora as al
from astralora import BlackBoxLinear, ConfigurationError


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2, bias=False)))


def test_replaces_layers_by_name_in_place(simulated: Any) -> None:
    net = model()
    attached = al.attach(net, {"2.0": simulated("slm", 8, 6), "2.1": simulated("slm", 6, 2)})
    assert attached is net
    assert isinstance(net[2][0], BlackBoxLinear)  # type: ignore[index]
    assert isinstance(net[0], nn.Linear)  # type: ignore[index]
    assert net[2][1].bias is None, "the layer replaced had none"  # type: ignore[index]
    net(torch.ones(3, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_keeps_bias_and_strength_of_the_layer_that_it_replaces(simulated: Any, generator: torch.Generator) -> None:
    net = model()
    old = net[2][0]  # type: ignore[index]
    with torch.no_grad():
        old.weight *= 7
    al.attach(net, {"2.0": simulated("matvec", 8, 6)})
    new = net[2][0]  # type: ignore[index]
    assert torch.equal(new.bias, old.bias)
    x = torch.randint(0, 2, (500, 8), generator=generator) * 2.0 - 1
    with torch.no_grad():
        before, after = ((layer(x) - layer.bias).square().mean().sqrt() for layer in (old, new))
    # Sixteen vectors set the gain; their spread on an 8 x 6 matrix is some 10 %.
    assert float(after) == pytest.approx(float(before), rel=0.3)


def test_a_model_that_is_itself_the_layer_comes_back_new(simulated: Any) -> None:
    layer = al.attach(model()[0], {"": simulated("slm", 4, 8)})  # type: ignore[index]
    assert isinstance(layer, BlackBoxLinear)


def test_keeps_precision_and_mode(simulated: Any) -> None:
    net = model().double().eval()
    al.attach(net, {"0": simulated("slm", 4, 8)})
    assert net[0].controls.dtype == torch.float64  # type: ignore[index]
    assert not net[0].training  # type: ignore[index]


def pair() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("2.7", "no nn.Linear named '2.7'; did you mean '2.[01]'. it has '0', '2.0', '2.1'"),
        ("1", "no nn.Linear named '1'; it has '0', '2.0', '2.1'"),
        ("0", "layer '0' maps 4 to 8 features, but device 'slm' maps 8 to 6"),
    ],
)
def test_checks_all_names_and_widths_before_touching_a_device(name: str, complaint: str, simulated: Any) -> None:
    net, good, bad = model(), simulated("slm", 8, 6), simulated("slm", 8, 6)
    with pytest.raises(ConfigurationError, match=complaint):
        al.attach(net, {"2.0": good, name: bad})
    assert good.usage == bad.usage == al.Usage()
    assert isinstance(net[2][0], nn.Linear)  # type: ignore[index]


def test_the_readme_example_runs(simulated: Any) -> None:
    net = model()
    device = al.open_device("mrr", in_features=8, out_features=6, impairments="lab")
    net = al.attach(net, {"2.0": device})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = net(torch.ones(3, 4)).square().sum()
    loss.backward()
    optimizer.step()
    assert device.usage.programs == 2


def test_one_chip_at_two_places_is_guarded_once(simulated: Any) -> None:
    raw = al.make_device("matvec", in_features=8, out_features=8)
    net = pair()
    al.attach(net, {"0": raw, "1": raw})
    assert net[0].session is net[1].session
    with torch.no_grad():
        x = torch.eye(8)
        net(x)
        ours = (net[0](x) - net[0].bias) / net[0].gain
    torch.testing.assert_close(ours, net[0].controls.detach().reshape(8, 8).T)


def test_tied_layers_stay_tied(simulated: Any) -> None:
    linear = pair()[0]
    net = nn.Sequential(linear, nn.ReLU(), linear)
    al.attach(net, {"0": simulated("slm", 8, 8)})
    assert isinstance(net[2], BlackBoxLinear)
    assert net[0] is net[2]


def test_a_frozen_layer_stays_frozen(simulated: Any) -> None:
    net = model()
    net.requires_grad_(False)
    al.attach(net, {"0": simulated("slm", 4, 8)})
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_layers_of_one_size_start_differently(simulated: Any) -> None:
    net = pair()
    al.attach(net, {"0": simulated("slm", 8, 8), "1": simulated("slm", 8, 8)})
    assert not torch.equal(net[0].controls, net[1].controls)


def test_a_method_is_checked_for_all_layers_before_the_first_is_touched(simulated: Any) -> None:
    net, first, second = model(), simulated("slm", 8, 6), simulated("mzi", 6, 2)
    with pytest.raises(ConfigurationError, match="needs elementwise coupling"):
        al.attach(net, {"2.0": first, "2.1": second}, estimator="elementwise")
    assert first.usage == al.Usage()
    assert isinstance(net[2][0], nn.Linear)  # type: ignore[index]


def test_one_estimator_cannot_serve_two_layers(simulated: Any) -> None:
    devices = {"2.0": simulated("slm", 8, 6), "2.1": simulated("slm", 6, 2)}
    with pytest.raises(ConfigurationError, match="one surrogate cannot serve 2 layers"):
        al.attach(model(), devices, surrogate=al.SURROGATES.make("online"))
