"""Test which layers attach and detach replace, and what the new layers keep."""

from math import sqrt
from typing import Any

import pytest
import torch
from torch import nn

import astralora as al
from astralora import BlackBoxLinear, ConfigurationError
from astralora.simulators import Impairments


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2, bias=False)))


def device_layer(net: nn.Module, name: str) -> BlackBoxLinear:
    layer = net.get_submodule(name)
    assert isinstance(layer, BlackBoxLinear)
    return layer


def test_layers_are_replaced_by_name_in_place(simulated: Any) -> None:
    net = model()
    attached = al.attach(net, {"2.0": simulated("slm", 8, 6), "2.1": simulated("slm", 6, 2)})
    assert attached is net
    assert isinstance(net.get_submodule("2.0"), BlackBoxLinear)
    assert isinstance(net[0], nn.Linear)
    assert device_layer(net, "2.1").bias is None, "the digital layer had no bias"
    net(torch.ones(3, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_device_layer_keeps_the_bias_and_output_strength_of_the_digital_one(
    simulated: Any, generator: torch.Generator
) -> None:
    net = model()
    old = net.get_submodule("2.0")
    assert isinstance(old, nn.Linear)
    with torch.no_grad():
        old.weight *= 7
    al.attach(net, {"2.0": simulated("matvec", 8, 6)})
    new = device_layer(net, "2.0")
    assert new.bias is not None
    assert torch.equal(new.bias, old.bias)
    x = torch.randint(0, 2, (500, 8), generator=generator) * 2.0 - 1
    with torch.no_grad():
        before, after = ((layer(x) - bias).square().mean().sqrt() for layer, bias in ((old, old.bias), (new, new.bias)))
    # Sixteen vectors set the gain; on an 8 x 6 matrix its spread is about 10 %.
    assert float(after) == pytest.approx(float(before), rel=0.3)


def test_a_model_that_is_the_layer_itself_is_returned_as_a_new_model(simulated: Any) -> None:
    layer = al.attach(model()[0], {"": simulated("slm", 4, 8)})
    assert isinstance(layer, BlackBoxLinear)


def test_a_device_layer_keeps_precision_and_training_mode(simulated: Any) -> None:
    net = model().double().eval()
    al.attach(net, {"0": simulated("slm", 4, 8)})
    assert device_layer(net, "0").controls.dtype == torch.float64
    assert not net[0].training


def pair() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("2.7", "no nn.Linear named '2.7', nor a nn.Conv2d; did you mean '2.[01]'. it has '0', '2.0', '2.1'"),
        ("1", "no nn.Linear named '1', nor a nn.Conv2d; it has '0', '2.0', '2.1'"),
        ("0", "layer '0' maps 4 to 8 features, but device 'slm' maps 8 to 6"),
    ],
)
def test_all_names_and_widths_are_checked_before_a_device_is_operated(
    name: str, complaint: str, simulated: Any
) -> None:
    net, good, bad = model(), simulated("slm", 8, 6), simulated("slm", 8, 6)
    with pytest.raises(ConfigurationError, match=complaint):
        al.attach(net, {"2.0": good, name: bad})
    assert good.usage == bad.usage == al.Usage()
    assert isinstance(net.get_submodule("2.0"), nn.Linear)


def test_the_readme_example_runs(simulated: Any) -> None:
    net: nn.Module = model()
    device = al.open_device("mrr", in_features=8, out_features=6, impairments="lab")
    net = al.attach(net, {"2.0": device})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = net(torch.ones(3, 4)).square().sum()
    loss.backward()
    optimizer.step()
    assert device.usage.programs == 2


def test_one_chip_at_two_places_has_one_session(simulated: Any) -> None:
    raw = al.make_device("matvec", in_features=8, out_features=8)
    net = pair()
    al.attach(net, {"0": raw, "1": raw})
    first, second = device_layer(net, "0"), device_layer(net, "1")
    assert first.session is second.session
    assert first.gain is not None
    with torch.no_grad():
        x = torch.eye(8)
        net(x)
        ours = (first(x) - first.bias) / first.gain
    torch.testing.assert_close(ours, first.controls.detach().reshape(8, 8).T)


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


def test_layers_of_equal_size_start_with_different_controls(simulated: Any) -> None:
    net = pair()
    al.attach(net, {"0": simulated("slm", 8, 8), "1": simulated("slm", 8, 8)})
    assert not torch.equal(device_layer(net, "0").controls, device_layer(net, "1").controls)


def test_the_method_is_checked_for_all_layers_before_a_device_is_operated(simulated: Any) -> None:
    net, first, second = model(), simulated("slm", 8, 6), simulated("mzi", 6, 2)
    with pytest.raises(ConfigurationError, match="needs elementwise coupling"):
        al.attach(net, {"2.0": first, "2.1": second}, estimator="elementwise")
    assert first.usage == al.Usage()
    assert isinstance(net.get_submodule("2.0"), nn.Linear)


def test_one_estimator_cannot_serve_two_layers(simulated: Any) -> None:
    devices = {"2.0": simulated("slm", 8, 6), "2.1": simulated("slm", 6, 2)}
    with pytest.raises(ConfigurationError, match="several layers cannot share one surrogate object"):
        al.attach(model(), devices, surrogate=al.surrogates.SURROGATES.make("online"))


pytestmark = pytest.mark.usefixtures("a_throwaway_global_random_state")


# -- which layers ---------------------------------------------------------------------------------


def slm(n: int, m: int) -> al.Device:
    return al.make_device("slm", in_features=n, out_features=m)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(1, 4, 3)
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(2)
            )
            self.head = nn.Linear(4, 3)


def attached(net: nn.Module) -> set[str]:
    return {name for name, module in net.named_modules() if isinstance(module, BlackBoxLinear)}


@pytest.mark.parametrize(
    ("layers", "exclude", "expected"),
    [
        ({"blocks.*.up": slm}, (), {"blocks.0.up", "blocks.1.up"}),
        ({"blocks.*": slm}, ("*.down",), {"blocks.0.up", "blocks.1.up"}),
        ({"blocks.[1-9].*": slm}, (), {"blocks.1.up", "blocks.1.down"}),
        ({nn.Conv2d: slm}, (), {"stem"}),
        ({nn.Linear: slm}, ("head",), {"blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"}),
        ({nn.Module: slm}, ("blocks.*", nn.Conv2d), {"head"}),
    ],
)
def test_layers_are_chosen_by_pattern_type_and_exclusion(layers: Any, exclude: Any, expected: set[str]) -> None:
    net = al.attach(Blocks(), layers, exclude=exclude)
    assert attached(net) == expected


def test_a_name_goes_before_a_pattern_and_a_pattern_before_a_type() -> None:
    def named(name: str) -> Any:
        return lambda n, m: al.make_device(name, in_features=n, out_features=m)

    layers = {nn.Linear: named("matvec"), "blocks.*": named("slm"), "blocks.1.up": named("mrr")}
    net = al.attach(Blocks(), layers)
    kinds = {name: device_layer(net, name).session.spec.name for name in attached(net)}
    assert kinds == {
        "head": "matvec",
        "blocks.0.up": "slm",
        "blocks.0.down": "slm",
        "blocks.1.down": "slm",
        "blocks.1.up": "mrr",
    }


def test_options_may_differ_by_layer() -> None:
    net = al.attach(
        Blocks(),
        {nn.Linear: slm},
        method="paper",
        samples=7,
        per_layer={
            "blocks.*": {"samples": 3},
            "blocks.1.*": {"method": "auto", "samples": 5, "estimator": "output", "surrogate": "online"},
        },
    )
    places = ("head", "blocks.0.up", "blocks.1.up")
    estimators: dict[str, Any] = {name: device_layer(net, name).estimator for name in places}
    chosen = {name: (type(estimator).__name__, estimator.samples) for name, estimator in estimators.items()}
    assert chosen == {"head": ("Gaussian", 7), "blocks.0.up": ("Gaussian", 3), "blocks.1.up": ("Output", 5)}


@pytest.mark.parametrize(
    ("layers", "options", "complaint"),
    [
        ({"blocks.*.left": slm}, {}, "no nn.Linear named 'blocks.*.left'"),
        ({nn.Conv1d: slm}, {}, "no layer of type Conv1d"),
        ({nn.Conv2d: slm}, {"exclude": ["stem"]}, "no layer of type Conv2d that is not excluded"),
        (
            {"head": slm},
            {"per_layer": {"stem": {}}},
            "per_layer has options for 'stem', but no layer to attach matches it",
        ),
        ({"head": lambda n, m: "chip"}, {}, "that makes a device for layer 'head' returned a str"),
        ({"head": slm}, {"initialize": "magic"}, "initialize must be 'device' or 'fit'"),
        ({"head": slm}, {"digital_fraction": 1.0}, "digital_fraction must be at least 0 and below 1"),
        ({"head": slm}, {"per_layer": {"head": {"step": -1.0}}}, "a step must be positive"),
    ],
)
def test_a_wrong_choice_of_layers_or_options_is_refused(layers: Any, options: Any, complaint: str) -> None:
    net = Blocks()
    with pytest.raises(ConfigurationError, match=complaint):
        al.attach(net, layers, **options)
    assert not attached(net)


def test_a_convolution_in_groups_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="in 2 groups"):
        al.attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), {"0": slm})


# -- detach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0)])
def test_detach_puts_in_digital_layers_that_compute_the_same(bounds: Any, generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Linear(16, 5)).double()

    def make(n: int, m: int) -> al.Device:
        return al.make_device("slm", in_features=n, out_features=m, input_range=bounds)

    al.attach(net, {nn.Module: make}, digital_fraction=0.1).eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        through = net(x)
        assert al.detach(net, repeats=1) is net
        assert [type(layer) for layer in net] == [nn.Conv2d, nn.Flatten, nn.Linear]
        assert net[0].bias is None
        torch.testing.assert_close(net(x), through)


def test_detach_replaces_the_given_layers_only() -> None:
    net = al.attach(Blocks(), {nn.Linear: slm})
    al.detach(net, ["blocks.*"])
    assert attached(net) == {"head"}
    with pytest.raises(ConfigurationError, match="no device layer 'stem'; it has 'head'"):
        al.detach(net, ["stem"])


def test_detach_refuses_a_device_without_a_matrix(matrix_device: Any) -> None:
    net = al.attach(nn.Sequential(nn.Linear(4, 3)), {"0": matrix_device(linear=False)})
    with pytest.raises(ConfigurationError, match="'0' is on 'bench', which is not linear"):
        al.detach(net)


def test_detach_reduces_noise_by_repeated_measurement(simulated: Any) -> None:
    net = nn.Sequential(nn.Linear(32, 32))
    session = simulated("matvec", 32, 32, impairments=Impairments(output_noise_fraction=0.01))
    al.attach(net, {"0": session}, gain=False)
    layer = device_layer(net, "0")
    true = layer.controls.detach().view(32, 32)
    errors = [float((layer.measure_weight(repeats) - true).std()) for repeats in (1, 16)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=5 / sqrt(2 * 32 * 32) * sqrt(2))


# -- fit to trained weights ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("matvec", 1e-3), ("slm", 1e-3), ("mrr", 1e-2)])
def test_a_fit_is_exact_where_the_device_can_compute_the_weights(kind: str, most: float, simulated: Any) -> None:
    digital = nn.Linear(16, 12)
    net = nn.Sequential(digital)
    session = simulated(kind, 16, 12)
    weight = digital.weight.detach().clone()
    al.attach(net, {"0": session}, initialize="fit")
    layer = device_layer(net, "0")
    assert layer.gain is not None
    assert layer.fit_residual is not None
    assert layer.fit_residual < most
    true = layer.gain.detach() * session.device.transfer(layer.controls.detach(), torch.eye(16)).T
    assert float((true - weight).norm() / weight.norm()) == pytest.approx(layer.fit_residual, abs=1e-4)
    assert session.usage_by_purpose["fit"].programs <= 40


def test_a_fit_on_a_lab_chip_is_nearly_as_good_as_its_rings_allow(simulated: Any) -> None:
    digital = nn.Linear(64, 32)
    net = nn.Sequential(digital)
    weight = digital.weight.detach().clone()
    session = simulated("mrr", 64, 32, impairments="lab")
    al.attach(net, {"0": session}, initialize="fit")
    layer = device_layer(net, "0")
    assert layer.gain is not None
    # With unknown offsets some rings cannot reach their resonance, which the most negative weights need.
    low, high = session.spec.control_range
    gain, settings = layer.gain.detach(), torch.linspace(low, high, 200)
    curves = torch.stack([session.device.transfer(w.expand(2048), torch.eye(64)).T for w in settings])
    reachable = torch.minimum(torch.maximum(weight / gain, curves.amin(dim=0)), curves.amax(dim=0))
    least = float((gain * reachable - weight).norm() / weight.norm())
    assert least > 0.05
    true = gain * session.device.transfer(layer.controls.detach(), torch.eye(64)).T
    error = float((true - weight).norm() / weight.norm())
    assert error < 1.3 * least
    # The residual is measured, so it includes the noise and rounding of the measurement.
    assert layer.fit_residual is not None
    assert error < layer.fit_residual < 1.3 * error


def test_a_fit_on_a_mesh_follows_the_gradient(simulated: Any) -> None:
    session = simulated("mzi", 8, 8)
    digital = nn.Linear(8, 8)
    net = nn.Sequential(digital)
    target = session.device.physics.matrix(
        al.devices.initial_controls(session.spec, torch.Generator().manual_seed(5)), 8, 8
    )
    with torch.no_grad():
        digital.weight.copy_(target)
    al.attach(net, {"0": session}, initialize="fit", method="exact", gain=False)
    residual = device_layer(net, "0").fit_residual
    assert residual is not None
    assert residual < 0.3


def test_a_fitted_model_can_be_trained(simulated: Any, generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    al.attach(net, {nn.Linear: slm}, initialize="fit")
    net(torch.randn(5, 8, generator=generator)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# -- sparse + device --------------------------------------------------------------------------------


def test_the_largest_weights_stay_digital_and_the_device_is_fitted_to_the_rest(simulated: Any) -> None:
    digital = nn.Linear(16, 12)
    net = nn.Sequential(digital)
    weight = digital.weight.detach().clone()
    session = simulated("slm", 16, 12)
    al.attach(net, {"0": session}, initialize="fit", digital_fraction=0.1)
    layer = device_layer(net, "0")
    assert layer.digital is not None
    assert layer.digital_places is not None
    rows, columns = layer.digital_places
    assert len(layer.digital) == 19
    assert torch.equal(layer.digital.detach(), weight[rows, columns])
    smallest_kept = float(layer.digital.detach().abs().min())
    assert int((weight.abs() > smallest_kept).sum()) == 18
    torch.testing.assert_close(layer.measure_weight(), weight, atol=2e-3, rtol=0)


def test_the_digital_part_has_the_gradients_of_a_linear_layer(simulated: Any, generator: torch.Generator) -> None:
    session = simulated("matvec", 6, 5)
    digital = torch.zeros(5, 6, dtype=torch.float64)
    digital[1, 2], digital[4, 0] = 0.7, -0.3
    layer = BlackBoxLinear(session, digital=digital, method="exact", dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64, generator=generator).requires_grad_()
    grad = torch.randn(9, 5, dtype=torch.float64, generator=generator)
    y = layer(x)
    y.backward(grad)
    assert layer.gain is not None
    full = layer.gain.detach() * layer.controls.detach().view(5, 6) + digital
    torch.testing.assert_close(y, x @ full.T)
    torch.testing.assert_close(x.grad, grad @ full)
    assert layer.digital is not None
    torch.testing.assert_close(layer.digital.grad, (grad.T @ x.detach())[[1, 4], [2, 0]])
    clone = BlackBoxLinear(simulated("matvec", 6, 5), digital=digital * 2, dtype=torch.float64)
    clone.load_state_dict(layer.state_dict())
    assert clone.digital is not None
    assert torch.equal(clone.digital, layer.digital)


# -- further cases ----------------------------------------------------------------------------------


def test_detach_accepts_controls_that_an_optimizer_has_moved_out_of_range(simulated: Any) -> None:
    net = nn.Sequential(nn.Linear(8, 6))
    al.attach(net, {"0": simulated("slm", 8, 6)})
    with torch.no_grad():
        device_layer(net, "0").controls.add_(100)
    al.detach(net)
    assert isinstance(net[0], nn.Linear)


def test_detach_replaces_nothing_if_one_device_fails(simulated: Any) -> None:
    net = al.attach(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), {nn.Linear: slm})
    device_layer(net, "1").session.close()
    with pytest.raises(al.DeviceError):
        al.detach(net)
    assert attached(net) == {"0", "1"}


def test_a_frozen_layer_can_be_fitted_on_a_mesh(simulated: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
    al.attach(net, {"0": simulated("mzi", 4, 4)}, initialize="fit", method="exact")
    assert not device_layer(net, "0").controls.requires_grad


def test_a_transformer_layer_works_in_evaluation_mode() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    al.attach(layer, {"linear?": slm}).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        through = layer(x)
        al.detach(layer)
        torch.testing.assert_close(layer(x), through, atol=1e-4, rtol=1e-4)


def test_an_estimator_object_can_be_given_to_one_layer(simulated: Any) -> None:
    mine = al.estimators.ESTIMATORS.make("orthogonal")
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    al.attach(net, {nn.Linear: slm}, per_layer={"0": {"estimator": mine, "surrogate": "online"}})
    assert device_layer(net, "0").estimator is mine


def test_bfloat16_is_refused_before_a_device_is_operated(simulated: Any) -> None:
    net, session = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).bfloat16()), simulated("slm", 8, 8)
    with pytest.raises(ConfigurationError, match=r"layer '1' is torch\.bfloat16"):
        al.attach(net, {"0": session, "1": slm})
    assert session.usage == al.Usage()


def test_a_device_class_can_be_given_as_the_function_that_makes_devices(matrix_device: Any) -> None:
    net = al.attach(nn.Sequential(nn.Linear(4, 3)), {nn.Linear: matrix_device})
    assert attached(net) == {"0"}


def test_a_tied_layer_matches_by_all_of_its_names() -> None:
    linear = nn.Linear(8, 8)

    def net() -> nn.ModuleDict:
        return nn.ModuleDict({"a": linear, "b": linear})

    with pytest.raises(ConfigurationError, match="that is not excluded"):
        al.attach(net(), {"b": slm}, exclude=["a"])
    tied = net()
    al.attach(tied, {"a*": slm, "b": lambda n, m: al.make_device("mrr", in_features=n, out_features=m)})
    assert tied["a"] is tied["b"]
    assert device_layer(tied, "a").session.spec.name == "mrr"


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ({"0": "matvec"}, r"layer '0' is given 'matvec'; give a device, such as al.make_device\('matvec', ...\)"),
        ({"0": 3}, "layer '0' is given 3; give a device, or a function that makes one"),
        ({0: "matvec"}, "a layer is named by its name, a pattern or a type, not by 0"),
    ],
)
def test_a_wrong_key_or_value_is_refused_in_one_sentence(layers: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        al.attach(nn.Sequential(nn.Linear(4, 3)), layers)
