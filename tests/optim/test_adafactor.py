"""Test the update of Flora against the Adafactor of two other libraries and against its formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora.optim.adafactor import clip, rms

SHAPES = [(6, 10), (10, 6), (7,), (4, 3, 3, 3), (4, 3, 1, 1), (1, 5), (5, 1), (1, 1), ()]


def parameters(generator: torch.Generator) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def descend(optimizer: torch.optim.Optimizer, steps: int, seed: int = 5) -> list[Tensor]:
    """Step along gradients that depend on the parameters and differ tenfold from step to step."""
    generator = torch.Generator().manual_seed(seed)
    (group,) = optimizer.param_groups
    for step in range(steps):
        for parameter in group["params"]:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = (parameter.detach() + noise) * 10 ** (step % 2)
        optimizer.step()
    return [parameter.detach().clone() for parameter in group["params"]]


def both(generator: torch.Generator) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    ours = parameters(generator)
    return ours, [nn.Parameter(parameter.detach().clone()) for parameter in ours]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.01},
        {"lr": 0.01, "scale_parameter": False, "weight_decay": 0.1},
        {"lr": 0.01, "eps": (1e-3, 0.5), "clip_threshold": 0.3, "decay_rate": -0.5},
        {"relative_step": True},
        {"relative_step": True, "warmup_init": True, "weight_decay": 0.1},
        # With momentum, transformers scales updates before it averages them: the same for a constant step size.
        {"lr": 0.01, "scale_parameter": False, "beta1": 0.9},
    ],
    ids=str,
)
def test_updates_equal_those_of_adafactor_in_transformers(options: dict[str, Any], generator: torch.Generator) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = both(generator)
    reference = transformers.Adafactor(theirs, **{"relative_step": False, **options})
    for mine, other in zip(descend(al.optim.Flora(ours, **options), 8), descend(reference, 8), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


def test_updates_equal_those_of_adafactor_in_torch_where_the_formulas_agree(generator: torch.Generator) -> None:
    ours, theirs = both(generator)
    # In torch the step size is min(lr, 1 / sqrt(t)) max(eps2, RMS(p)), and eps1 bounds v from below: no effect here.
    reference = torch.optim.Adafactor(theirs, lr=0.01, beta2_decay=-0.8, eps=(1e-60, 1e-3), d=1.0, weight_decay=0.0)
    mine = descend(al.optim.Flora(ours, lr=0.01, eps=(1e-60, 1e-3)), 8)
    for our, their in zip(mine, descend(reference, 8), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-9)


def test_the_second_moment_of_every_entry_can_be_stored(generator: torch.Generator) -> None:
    parameter = nn.Parameter(torch.randn(5, 8, generator=generator, dtype=torch.float64))
    optimizer = al.optim.Flora(
        [parameter], lr=0.01, factorize_second_moment=False, scale_parameter=False, clip_threshold=1e9
    )
    expected, square = parameter.detach().clone(), torch.zeros(5, 8, dtype=torch.float64)
    for step in range(1, 6):
        parameter.grad = torch.randn(5, 8, generator=generator, dtype=torch.float64)
        beta2 = 1 - step**-0.8
        square = beta2 * square + (1 - beta2) * (parameter.grad**2 + 1e-30)
        expected -= 0.01 * parameter.grad / square.sqrt()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected)
    assert optimizer.state_bytes() == 5 * 8 * 8 + 4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_updates_are_clipped_by_their_root_mean_square(scale: float, generator: torch.Generator) -> None:
    update = scale * torch.randn(50, 40, generator=generator)
    found = clip(update, 0.7)
    assert float(rms(found)) == pytest.approx(min(float(rms(update)), 0.7), rel=1e-5)
    assert float(nn.functional.cosine_similarity(found.flatten(), update.flatten(), dim=0)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"beta1": 0.9}, {"beta1": 0.9, "rank": 3}], ids=str)
def test_half_precision_is_computed_in_float32(
    dtype: torch.dtype, options: dict[str, Any], generator: torch.Generator
) -> None:
    half = nn.Parameter(torch.randn(6, 10, generator=generator).to(dtype))
    full = nn.Parameter(half.detach().float())
    low, high = (al.optim.Flora([parameter], lr=0.01, **options) for parameter in (half, full))
    for _ in range(4):
        # The squares of these gradients are outside of the range of float16.
        half.grad = (1e3 * torch.randn(6, 10, generator=generator)).to(dtype)
        full.grad = half.grad.float()
        low.step()
        high.step()
        # Each step rounds the parameter itself only.
        assert torch.equal(half.detach(), full.detach().to(dtype))
        full.data.copy_(half.detach())
    floating = [value for value in low.state[half].values() if isinstance(value, Tensor)]
    assert {value.dtype for value in floating} == {torch.float32}


def test_a_gradient_of_zeros_changes_no_parameter(generator: torch.Generator) -> None:
    parameter = nn.Parameter(torch.randn(6, 10, generator=generator))
    before = parameter.detach().clone()
    optimizer = al.optim.Flora([parameter], lr=0.1, rank=2, beta1=0.9)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(parameter.detach(), before)
