"""Test OIALR in two processes that average their gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from astralora.lowrank import OIALR

from ..processes import in_two_processes
from .conftest import square_net

OPTIONS: dict[str, Any] = {
    "delay": 2,
    "stability_frequency": 3,
    "network_layer_perc_step": 0.5,
    "sigma_cutoff_fraction": 0.6,
    "min_rank": 2,
    "stability_threshold": 0.0,
}


def train(net: nn.Module, optimizer: optim.Optimizer, oialr: OIALR, steps: range, number: int | None) -> None:
    """Train on the half of each batch with this number, or on all of it for None."""
    for step in steps:
        x = torch.randn(16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x if number is None else x.chunk(2)[number]).square().mean().backward()
        optimizer.step()
        oialr.step()


def fresh(criterion: Any, seed: int, wrap: bool) -> tuple[nn.Module, optim.Optimizer, OIALR]:
    model: nn.Module = square_net(seed)
    if wrap:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = optim.AdamW(model.parameters(), lr=0.003)
    return model, optimizer, OIALR(model, optimizer, criterion=criterion, **OPTIONS)


def process(number: int, criterion: str) -> dict[str, Any]:
    """Train as one of two processes, change ranks, and continue in a fresh model."""
    first = fresh(criterion, 0, wrap=True)
    calls: list[int] = []
    first[0].register_forward_hook(lambda *_: calls.append(1))
    train(*first, range(9), number)
    second = fresh(criterion, 1, wrap=True)
    wrapper, optimizer, oialr = second
    wrapper.load_state_dict(first[0].state_dict())
    optimizer.load_state_dict(first[1].state_dict())
    oialr.load_state_dict(first[2].state_dict())
    train(*second, range(9, 14), number)
    assert isinstance(wrapper.module, nn.Module)
    return {
        "model": wrapper.module.state_dict(),
        "ranks": oialr.ranks,
        "moments": [optimizer.state[weight.trained]["exp_avg"] for weight in oialr.weights],
        "calls": len(calls),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("criterion", ["time", "stability"])
def test_two_processes_agree_with_each_other_and_with_a_single_process(criterion: str, tmp_path: Path) -> None:
    one, two = in_two_processes(process, tmp_path, criterion)
    assert one["ranks"] == two["ranks"]
    assert max(one["ranks"].values()) < 24
    for ours, theirs in zip(one["model"].items(), two["model"].items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
    for ours, theirs in zip(one["moments"], two["moments"], strict=True):
        assert torch.equal(ours, theirs)
    assert one["calls"] == 9, "the user's hooks remain"
    # A single process trains on whole batches.
    single = fresh(criterion, 0, wrap=False)
    train(*single, range(14), None)
    assert single[2].ranks == one["ranks"]
    loaded, (model, *_) = square_net(1), single
    OIALR(loaded, min_rank=2)  # allows loading factors of any rank
    loaded.load_state_dict(one["model"])
    x = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-6, atol=1e-6)
