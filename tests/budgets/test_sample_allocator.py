"""Test that moving samples between device layers lowers the variance and never exceeds the budget."""

from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora import ConfigurationError
from astralora.budgets.sample_allocator import SampleAllocator
from astralora.devices import Purpose
from astralora.estimators import Exact, Gaussian

from ..processes import in_two_processes

SAMPLES = 8


class Sum(nn.Module):
    """Sum the outputs of device layers, with a weight for each."""

    def __init__(self, layers: Sequence[al.BlackBoxLinear], weights: Sequence[float]) -> None:
        super().__init__()
        self.layers, self.weights = nn.ModuleList(layers), list(weights)

    def forward(self, x: Tensor) -> Tensor:
        return sum((w * layer(x) for w, layer in zip(self.weights, self.layers, strict=True)), torch.zeros(()))

    def device_layers(self) -> Iterator[al.BlackBoxLinear]:
        for layer in self.layers:
            assert isinstance(layer, al.BlackBoxLinear)
            yield layer


def model(
    weights: Sequence[float] = (1.0, 0.03, 0.03), estimator: str = "gaussian", width: int = 6, **chip: Any
) -> tuple[Sum, Tensor, Tensor]:
    """Return the model, inputs, and the constant gradient of the loss with respect to the outputs."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.empty(12, width).uniform_(-1, 1, generator=generator)
    slope = torch.randn(12, 4, generator=generator)
    layers = [
        al.BlackBoxLinear(
            al.make_device("matvec", in_features=width, out_features=4, seed=seed, **{"impairments": "ideal", **chip}),
            estimator=estimator,
            surrogate="online",
            samples=SAMPLES,
            seed=seed,
        )
        for seed in range(3)
    ]
    return Sum(layers, weights), inputs, slope


def backward(net: Sum, inputs: Tensor, slope: Tensor) -> list[Tensor | None]:
    net.zero_grad()
    (net(inputs) * slope[: len(inputs)]).sum().backward()
    return [layer.controls.grad for layer in net.device_layers()]


def exact_gradients(net: Sum, inputs: Tensor, slope: Tensor) -> list[Tensor]:
    estimators = [layer.estimator for layer in net.device_layers()]
    for layer in net.device_layers():
        layer.estimator = Exact()
    found = [gradient.clone() for gradient in backward(net, inputs, slope) if gradient is not None]
    for layer, estimator in zip(net.device_layers(), estimators, strict=True):
        layer.estimator = estimator
    return found


def control_usage(net: Sum) -> list[al.Usage]:
    return [layer.session.usage_by_purpose.get(Purpose.CONTROLS, al.Usage()) for layer in net.device_layers()]


def test_neyman_lowers_the_total_variance_as_predicted_for_equal_vectors() -> None:
    steps = 600
    spent, squared, shares = {}, {}, []
    for ranking in (None, "neyman"):
        net, inputs, slope = model()
        truth = exact_gradients(net, inputs, slope)
        allocator = SampleAllocator(net, period=10, currency="vectors") if ranking else None
        for _ in range(20 if ranking else 0):
            assert allocator is not None
            with allocator.step():
                backward(net, inputs, slope)
        before = sum(usage.vectors for usage in control_usage(net))
        total = []
        for _ in range(steps):
            if allocator is None:
                found = backward(net, inputs, slope)
            else:
                with allocator.step():
                    found = backward(net, inputs, slope)
                shares.append(list(allocator.samples.values()))
            pairs = zip(found, truth, strict=True)
            total.append(sum(float((g - true).square().sum()) for g, true in pairs if g is not None))
        spent[ranking] = sum(usage.vectors for usage in control_usage(net)) - before
        squared[ranking] = torch.tensor(total)
    assert spent["neyman"] <= spent[None]
    assert spent["neyman"] > 0.97 * spent[None], "at equal vectors"
    # Total variance of Gaussian directions: a^2 / S with a = |g| sqrt(P + 1), layer by layer.
    deviations = [float(g.norm()) * sqrt(len(g) + 1) for g in truth]
    uniform = sum(a**2 / SAMPLES for a in deviations)
    best = sum(deviations) ** 2 / (3 * SAMPLES)
    expected = sum(sum(a**2 / s for a, s in zip(deviations, each, strict=True)) for each in shares) / len(shares)
    assert best <= expected < 1.05 * best, "whole numbers and estimated scores are close to the formula"
    for ranking, theory in ((None, uniform), ("neyman", expected)):
        error = float(squared[ranking].std()) / sqrt(steps)
        assert abs(float(squared[ranking].mean()) - theory) < 5 * error
    assert uniform / best > 2, "the gain is large enough to matter"


def test_scores_exclude_the_contributions_of_directions_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs, slope = model((1.0, 0.6, 0.3), impairments={"output_noise_fraction": 0.05})
    truth = [float(g.square().sum()) for g in exact_gradients(model((1.0, 0.6, 0.3))[0], inputs, slope)]
    allocator = SampleAllocator(net, "grad_norm", period=400)
    noise: dict[Any, float] = {}
    for layer in net.device_layers():
        assert isinstance(layer.estimator, Gaussian)
        layer.estimator.step = 0.1
        monkeypatch.setattr(
            layer.estimator, "_adapt_step", lambda _, variance, layer=layer: noise.update({layer: variance})
        )
    for _ in range(400):
        with allocator.step():
            backward(net, inputs, slope)
    # A mean of squares of normal numbers with variance |g|^2 + noise and weights (1 - 1/400)^k.
    effective = SAMPLES * (1 - 1 / 2.718) ** 2 / (1 - 1 / 2.718**2) * 2 * 400
    for layer, square, mean in zip(net.device_layers(), truth, allocator.means().values(), strict=True):
        added = noise[layer] / 0.1**2
        assert abs(mean - square) <= 5 * sqrt(2 / effective) * (square + added)
        assert added > 0.5 * square, "the noise is large enough to be noticed"
    gradient = next(net.device_layers()).controls.grad
    assert gradient is not None
    raw = float(gradient.square().sum())
    assert raw > 1.5 * truth[0], "the contribution of the directions is large as well"


@pytest.mark.parametrize("currency", ["vectors", "programs", "hardware_seconds"])
@pytest.mark.parametrize("ranking", ["neyman", "grad_norm", "snip"])
@pytest.mark.parametrize("turn_on", [1.0, 0.4])
def test_no_period_spends_more_than_its_budget(ranking: Any, currency: Any, turn_on: float) -> None:
    net, inputs, slope = model((1.0, 0.4, 0.1), impairments="lab")
    price = {"vectors": 6.0, "programs": 1.0, "hardware_seconds": 2e-3}[currency]
    budget = 5 * 3 * 4.5 * price
    allocator = SampleAllocator(net, ranking, period=5, budget=budget, currency=currency, turn_on=turn_on)
    generator = torch.Generator().manual_seed(1)
    before = control_usage(net)
    for step in range(1, 41):
        rows = int(torch.randint(1, 13, (), generator=generator))
        with allocator.step():
            backward(net, inputs[:rows], slope)
        if step % 5 == 0:
            after = control_usage(net)
            used = 0.0
            for layer, new, old in zip(net.device_layers(), after, before, strict=True):
                spent = new - old
                seconds = spent.hardware_seconds(layer.session.spec)
                used += {"vectors": spent.vectors, "programs": spent.programs, "hardware_seconds": seconds}[currency]
            assert used <= allocator.spent * (1 + 1e-9) <= budget * (1 + 1e-9)
            assert used > 0.3 * budget
            before = after


def test_the_first_period_sets_the_budget_if_none_is_given() -> None:
    net, inputs, slope = model()
    allocator = SampleAllocator(net, period=4, currency="programs")
    for _ in range(4):
        with allocator.step():
            backward(net, inputs, slope)
        assert set(allocator.samples.values()) == {SAMPLES}
    for _ in range(8):
        with allocator.step():
            backward(net, inputs, slope)
    assert allocator.budget == 4 * 3 * (SAMPLES + 1)
    assert allocator.samples["layers.0"] > SAMPLES > allocator.samples["layers.1"] >= 1


@pytest.mark.parametrize("surrogate", ["online", "online_low_rank", "psi"])
@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_a_resting_layer_spends_nothing_on_gradients(surrogate: str) -> None:
    net, inputs, slope = model()
    net.layers = nn.ModuleList(
        al.BlackBoxLinear(layer.session, estimator="gaussian", surrogate=surrogate, samples=SAMPLES)
        for layer in net.device_layers()
    )
    front = nn.Linear(6, 6)
    optimizer = torch.optim.Adam([*net.parameters(), *front.parameters()], lr=0.01)
    allocator = SampleAllocator(net, "grad_norm", period=4, turn_on=0.3, currency="vectors")
    for step in range(12):
        purposes = [dict(layer.session.usage_by_purpose) for layer in net.device_layers()]
        optimizer.zero_grad()
        with allocator.step():
            (net(front(inputs)) * slope).sum().backward()
        for layer, old, share in zip(net.device_layers(), purposes, allocator.samples.values(), strict=True):
            spent = {name: usage - old.get(name, al.Usage()) for name, usage in layer.session.usage_by_purpose.items()}
            training = [usage for name, usage in spent.items() if name not in ("forward", "startup")]
            if share == 0:
                assert sum(usage.programs + usage.queries for usage in training) == 0
                assert layer.controls.grad is None
            else:
                assert sum(usage.queries for usage in training) > 0
        optimizer.step()
        resting = sum(share == 0 for share in allocator.samples.values())
        assert resting == (0 if step < 4 or step == 8 else 2)


@pytest.mark.parametrize("ranking", ["neyman", "grad_norm", "snip"])
def test_a_learning_rate_of_0_moves_nothing(ranking: Any) -> None:
    net, inputs, slope = model(impairments="lab")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    allocator = SampleAllocator(net, ranking, period=3, turn_on=0.5)
    for _ in range(9):
        optimizer.zero_grad()
        with allocator.step():
            (net(inputs) * slope).sum().backward()
        optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_close_restores_the_samples_of_the_layers() -> None:
    net, inputs, slope = model()
    allocator = SampleAllocator(net, period=2, turn_on=0.3)
    for _ in range(4):
        with allocator.step():
            backward(net, inputs, slope)
    allocator.close()
    assert not any(layer.resting for layer in net.device_layers())
    estimators: list[Any] = [layer.estimator for layer in net.device_layers()]
    assert [estimator.samples for estimator in estimators] == [SAMPLES] * 3
    assert all(gradient is not None for gradient in backward(net, inputs, slope))


def test_invalid_options_and_estimators_are_refused() -> None:
    net, *_ = model()
    with pytest.raises(ConfigurationError, match="there are no device layers"):
        SampleAllocator(nn.Identity())
    for options, complaint in (
        ({"ranking": "best"}, "ranking must be one of neyman, grad_norm, snip, not 'best'"),
        ({"currency": "joules"}, "currency must be one of hardware_seconds, vectors, programs"),
        ({"period": 0}, "period must be a whole number of at least 1, not 0"),
        ({"turn_on": 0.0}, "turn_on must be above 0 and at most 1"),
        ({"budget": -1.0}, "the budget of a period must be at least 0"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            SampleAllocator(net, **options)
    device = al.make_device("matvec", in_features=3, out_features=2)
    with pytest.raises(ConfigurationError, match="is 'elementwise', which has no number of samples"):
        SampleAllocator({"a": al.BlackBoxLinear(device)})


def test_a_device_without_operation_times_needs_another_currency(matrix_device: Any) -> None:
    layer = al.BlackBoxLinear(
        matrix_device(program_seconds=0.0, vector_seconds=0.0), estimator="gaussian", surrogate="online"
    )
    with pytest.raises(ConfigurationError, match="the spec of 'bench' has no operation times"):
        SampleAllocator({"a": layer})
    assert SampleAllocator({"a": layer}, currency="programs").samples == {"a": 100}


def process(number: int) -> dict[str, Any]:
    """Train in one of two processes, in which different layers have the largest gradients."""
    net, inputs, slope = model((1.0, 0.3, 0.03) if number else (0.03, 0.3, 1.0))
    wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    allocator = SampleAllocator(net, period=4, turn_on=0.6, currency="vectors", group=torch.distributed.group.WORLD)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    samples, resting = [], []
    for _ in range(10):
        optimizer.zero_grad()
        with allocator.step():
            (wrapped(inputs) * slope[: len(inputs)]).sum().backward()
        optimizer.step()
        samples.append(list(allocator.samples.values()))
        resting.append([layer.controls.grad is None for layer in net.device_layers()])
    return {
        "samples": samples,
        "resting": resting,
        "controls": torch.cat([layer.controls.detach() for layer in net.device_layers()]),
        "scores": list(allocator.scores().values()),
    }


@pytest.mark.filterwarnings("ignore")
def test_data_parallel_processes_use_the_same_shares(tmp_path: Path) -> None:
    first, second = in_two_processes(process, tmp_path)
    assert first["samples"] == second["samples"]
    assert any(0 in samples for samples in first["samples"]), "one of three layers rests"
    for found in (first, second):
        assert found["resting"] == [[count == 0 for count in samples] for samples in found["samples"]]
    assert torch.equal(first["controls"], second["controls"])
    # Each process alone would have chosen differently.
    assert first["scores"].index(max(first["scores"])) != second["scores"].index(max(second["scores"]))
