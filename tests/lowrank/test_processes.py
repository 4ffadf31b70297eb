"""OIALR in two processes that average their gradients."""

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
    """On a half of each batch, or on all of it."""
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
    """One of two: trains, changes ranks, and goes on in a fresh model."""
    first = fresh(criterion, 0, wrap=True)
    calls: list[int] = []
    first[0].register_forward_hook(lambda *_: calls.append(1))
    train(*first, range(9), number)
    second = fresh(criterion, 1, wrap=True)
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(old.state_dict())
    train(*second, range(9, 14), number)
    return {
        "model": second[0].module.state_dict(),
        "ranks": second[2].ranks,
        "moments": [second[1].state[weight.trained]["exp_avg"] for weight in second[2].weights],
        "calls": len(calls),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("criterion", ["time", "stability"])
def test_processes_agree_with_each_other_and_with_one_alone(criterion: str, tmp_path: Path) -> None:
    one, two = in_two_processes(process, tmp_path, criterion)
    assert one["ranks"] == two["ranks"]
    assert max(one["ranks"].values()) < 24
    for ours, theirs in zip(one["model"].items(), two["model"].items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
    for ours, theirs in zip(one["moments"], two["moments"], strict=True):
        assert torch.equal(ours, theirs)
    assert one["calls"] == 9, "hooks of users stay where they are"
    # The same as one process on whole batches.
    alone = fresh(criterion, 0, wrap=False)
    train(*alone, range(14), None)
    assert alone[2].ranks == one["ranks"]
    mine, (model, *_) = square_net(1), alone
    OIALR(mine, min_rank=2)  # lets it take factors of any rank
    mine.load_state_dict(one["model"])
    x = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    torch.testing.assert_close(mine(x), model(x), rtol=1e-6, atol=1e-6)
