"""Test compressed accumulation against the sum of the gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora.common.errors import ConfigurationError
from astralora.optim import Flora, GradCompressor

Batches = list[tuple[Tensor, Tensor]]
COMPRESSED = ("0.weight", "3.weight", "5.weight")
"""Compressed weights of `net` at rank 2: 8 x 9, 24 x 32 and 32 x 24; 7.weight has only two rows."""


def accumulate(net: nn.Module, batches: Batches) -> None:
    for x, y in batches:
        (nn.functional.mse_loss(net(x), y) / len(batches)).backward()


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def dense(net: nn.Module, batches: Batches) -> dict[str, Tensor]:
    other = copy.deepcopy(net)
    accumulate(other, batches)
    return gradients(other)


@pytest.mark.parametrize("during_backward", [True, False])
def test_only_gradients_that_become_smaller_are_compressed(
    during_backward: bool, net: nn.Module, batches: Batches
) -> None:
    expected = dense(net, batches)
    compressor = GradCompressor(net, rank=2, during_backward=during_backward)
    for x, y in batches:
        (nn.functional.mse_loss(net(x), y) / len(batches)).backward()
        if not during_backward:
            compressor.absorb()
        assert not set(COMPRESSED) & gradients(net).keys()
    assert compressor.state_bytes() == 4 * 2 * (9 + 32 + 32)
    torch.testing.assert_close(gradients(net), {n: g for n, g in expected.items() if n not in COMPRESSED})
    compressor.release()
    assert compressor.state_bytes() == 0
    assert not compressor.pending
    assert {name: grad.shape for name, grad in gradients(net).items()} == {n: g.shape for n, g in expected.items()}


def test_the_result_is_the_sum_of_the_gradients_without_bias(net: nn.Module, batches: Batches) -> None:
    expected, draws = dense(net, batches), 300
    compressor = GradCompressor(net, rank=2)  # each accumulation draws another projection
    found: dict[str, list[Tensor]] = {name: [] for name in COMPRESSED}
    for _ in range(draws):
        net.zero_grad()
        accumulate(net, batches)
        compressor.release()
        for name in COMPRESSED:
            found[name].append(gradients(net)[name])
    for name, each in found.items():
        stacked = torch.stack(each)
        error = (stacked.mean(dim=0) - expected[name]).abs()
        assert (error < 5 * stacked.std(dim=0) / draws**0.5).all()
        relative = (stacked - expected[name]).flatten(1).square().sum(dim=1) / expected[name].square().sum()
        d = min(expected[name].flatten(1).shape)
        assert float(relative.mean()) == pytest.approx((d + 1) / 2, abs=4 * float(relative.std()) / draws**0.5)


def test_at_most_one_compressed_gradient_exists_at_a_time(net: nn.Module, batches: Batches) -> None:
    counts: list[int] = []
    weights = [parameter for name, parameter in net.named_parameters() if name in COMPRESSED]

    def count(_: Tensor) -> None:
        counts.append(sum(parameter.grad is not None for parameter in weights))

    for weight in weights:  # these hooks run before the compressor's
        weight.register_post_accumulate_grad_hook(count)
    compressor = GradCompressor(net, rank=2)
    accumulate(net, batches)
    assert counts == [1] * len(weights) * len(batches)

    class CountingFlora(Flora):
        def step_parameter(self, parameter: Tensor) -> None:
            count(parameter)
            super().step_parameter(parameter)

    counts.clear()
    compressor.release(CountingFlora(weights, lr=0.01))
    assert counts == [1] * len(weights)


def test_release_with_an_optimizer_equals_release_and_step(net: nn.Sequential, batches: Batches) -> None:
    other = copy.deepcopy(net)
    for each, into in ((net, True), (other, False)):
        compressor = GradCompressor(each, rank=2)
        optimizer = Flora(each[3:].parameters(), lr=0.01, rank=2, beta1=0.5)
        for _ in range(2):
            accumulate(each, batches)
            if into:
                compressor.release(optimizer)
            else:
                compressor.release()
                optimizer.step()
            each.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulators_are_never_larger_than_the_gradient(dtype: torch.dtype) -> None:
    shapes = [(4, 4), (4, 100), (3, 100), (16, 1, 3, 3), (16, 3, 3, 3), (300,), (8, 8), (9, 9), (0, 5), ()]
    for shape in shapes:
        parameter = nn.Parameter(torch.ones(shape, dtype=dtype))
        compressor = GradCompressor([parameter], rank=4)
        parameter.sum().backward()
        assert compressor.state_bytes() < max(parameter.numel() * parameter.element_size(), 1)
        compressor.release()
        assert parameter.grad is not None
        assert parameter.grad.dtype == dtype


def test_half_precision_accumulates_in_float32() -> None:
    # In bfloat16, 1 + 1/512 rounds to 1.
    parameter = nn.Parameter(torch.zeros(32, 32, dtype=torch.bfloat16))
    compressor = GradCompressor([parameter], rank=8)
    full = nn.Parameter(torch.zeros(32, 32))
    reference = GradCompressor([full], rank=8)
    for size in [1.0, *[1 / 512] * 512]:
        for each in (parameter, full):
            (each.sum() * size).backward()
    compressor.release()
    reference.release()
    assert parameter.grad is not None
    assert full.grad is not None
    assert torch.equal(parameter.grad, full.grad.bfloat16())


def test_each_accumulation_draws_another_subspace_from_the_seed() -> None:
    def run(seed: int) -> list[Tensor]:
        parameter = nn.Parameter(torch.ones(16, 16))
        compressor = GradCompressor([parameter], rank=2, seed=seed)
        found: list[Tensor] = []
        for _ in range(2):
            parameter.grad = None
            parameter.sum().backward()
            compressor.release()
            assert parameter.grad is not None
            found.append(parameter.grad)
        return found

    first, again, other = run(0), run(0), run(1)
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_restored_state_continues_bit_for_bit(unfinished: bool, net: nn.Module, batches: Batches) -> None:
    compressor = GradCompressor(net, rank=2)
    accumulate(net, batches)
    compressor.release()
    net.zero_grad()
    if unfinished:
        accumulate(net, batches[:2])
    resumed_net = copy.deepcopy(net)
    for parameter, other in zip(net.parameters(), resumed_net.parameters(), strict=True):
        other.grad = None if parameter.grad is None else parameter.grad.clone()
    resumed = GradCompressor(resumed_net, rank=2)
    resumed.load_state_dict(compressor.state_dict())
    for each, its in ((net, compressor), (resumed_net, resumed)):
        accumulate(each, batches[2:])
        its.release()
    found, expected = gradients(resumed_net), gradients(net)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_state_with_other_projections_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(16, 16))
    state = GradCompressor([parameter], rank=2).state_dict()
    with pytest.raises(ConfigurationError, match="compressed with rank=2, and cannot continue with rank=3"):
        GradCompressor([parameter], rank=3).load_state_dict(state)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 2, "projection": "sparse"}])
def test_invalid_arguments_are_refused(options: dict[str, Any], net: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        GradCompressor(net, **options)


def test_unfrozen_and_added_parameters_are_compressed_from_the_next_accumulation(
    net: nn.Sequential, batches: Batches
) -> None:
    net[3].requires_grad_(False)
    compressor = GradCompressor(net, rank=2)
    accumulate(net, batches)
    net[3].requires_grad_(True)
    compressor.release()
    net.append(nn.Linear(2, 16)).append(nn.Linear(16, 16)).append(nn.Linear(16, 2))
    compressor.absorb()
    net.zero_grad()
    accumulate(net, batches)
    absent = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert absent == {*COMPRESSED, "9.weight"}


def test_release_works_after_removal(net: nn.Module, batches: Batches) -> None:
    with GradCompressor(net, rank=2) as compressor:
        accumulate(net, batches)
    compressor.release()
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.zero_grad()
    expected = dense(net, batches)
    accumulate(net, batches)
    torch.testing.assert_close(gradients(net), expected)


# -- with devices ---------------------------------------------------------------------------


def on_device(simulated: Any, **options: Any) -> tuple[nn.Module, nn.Parameter]:
    """Make a model with a device layer, and return it with the device's controls."""
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12))
    model = al.attach(net, {"2": simulated("matvec", 16, 12)}, **options)
    return model, model.get_parameter("2.controls")


@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_zero_order_gradients_accumulate_without_a_dense_buffer(simulated: Any) -> None:
    net, controls = on_device(simulated, estimator="gaussian", surrogate="online", samples=20)
    compressor = GradCompressor(net, rank=3)
    for _ in range(4):
        net(torch.randn(8, 6)).square().sum().backward()
        assert controls.grad is None
    # 192 controls, folded into 13 x 15, and the matrix of 16 x 6.
    assert compressor.state_bytes() == 4 * 3 * (15 + 16)
    compressor.release()
    assert controls.grad is not None
    assert controls.grad.shape == (192,)


@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_accumulated_zero_order_gradients_average_to_the_true_gradient(simulated: Any) -> None:
    parts, repeats = 4, 120
    batches = [torch.randn(8, 6) for _ in range(parts)]
    exact, exact_controls = on_device(simulated, method="exact")
    for x in batches:
        exact(x).square().sum().backward()
    truth = exact_controls.grad
    assert truth is not None
    net, controls = on_device(simulated, estimator="gaussian", surrogate="online", samples=40)
    net.load_state_dict(
        {name: value for name, value in exact.state_dict().items() if not name.endswith("_extra_state")}, strict=False
    )
    compressor = GradCompressor(net, rank=6)
    found = []
    for _ in range(repeats):
        net.zero_grad()
        for x in batches:
            net(x).square().sum().backward()
        compressor.release()
        assert controls.grad is not None
        found.append(controls.grad.clone())
    stacked = torch.stack(found)
    error = (stacked.mean(dim=0) - truth).abs()
    # The device is linear in its controls, so that zero-order gradients have no bias.
    assert (error < 5 * stacked.std(dim=0) / repeats**0.5).all()
    # Relative variances: 192 / (40 x 4) of the estimates, 14 / 6 of the projections; 0.05 together after 120 repeats.
    assert float(nn.functional.cosine_similarity(stacked.mean(dim=0), truth, dim=0)) > 0.9
