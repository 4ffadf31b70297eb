"""Test a device layer with checkpointing, accumulation, autocast, compilation and DDP."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import astralora as al
from astralora import BlackBoxLinear
from astralora.devices import Purpose

from ..processes import in_two_processes

pytestmark = pytest.mark.usefixtures("a_throwaway_global_random_state")


def model(device: Any, **options: Any) -> nn.Sequential:
    """Return a model of a linear, a device and a linear layer, always with the same weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    al.attach(net, {"2": device}, **options)
    return net


def session_of(net: nn.Sequential) -> al.Session:
    layer = net[2]
    assert isinstance(layer, BlackBoxLinear)
    return layer.session


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool, simulated: Any) -> None:
    x = torch.randn(5, 8)
    found = []
    for checkpointed in (False, True):
        net = model(simulated("matvec", 16, 12))
        inputs = x.clone().requires_grad_()
        y = checkpoint(net, inputs, use_reentrant=reentrant) if checkpointed else net(inputs)
        y.square().sum().backward()
        found.append([*gradients(net), inputs.grad])
        # The forward pass runs twice; the second time the device holds the controls already.
        assert session_of(net).usage_by_purpose[Purpose.CONTROLS].programs <= 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_accumulated_over_parts_equal_those_of_the_batch(simulated: Any) -> None:
    x = torch.randn(12, 8)
    found = []
    for parts in (1, 3):
        net = model(simulated("matvec", 16, 12))
        for part in x.chunk(parts):
            net(part).square().sum().backward()
        found.append(gradients(net))
    for whole, accumulated in zip(*found, strict=True):
        torch.testing.assert_close(whole, accumulated)


def test_accumulation_measures_the_slopes_once(simulated: Any) -> None:
    net = model(simulated("mrr", 16, 12, impairments="lab"))
    session = session_of(net)
    before = session.usage.programs
    for _ in range(5):
        net(torch.randn(6, 8)).square().sum().backward()
    # One measurement, and one program that restores the controls after it.
    assert session.usage.programs - before == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_device_has_full_precision_under_autocast(dtype: torch.dtype, simulated: Any) -> None:
    net = model(simulated("matvec", 16, 12))
    with torch.autocast("cpu", dtype=dtype):
        y = net(torch.randn(5, 8))
        assert y.dtype == dtype
        loss = y.float().square().sum()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in net.parameters())


class Unrolled(nn.Module):
    """Call the layers one by one: after a graph break inside a loop the compiler stops."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        self.first, self.second, self.device, self.fourth, self.last = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        x = self.device(x)
        y: torch.Tensor = self.last(self.fourth(x))
        return y


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_model_breaks_its_graph_only_at_the_device(simulated: Any) -> None:
    x = torch.randn(5, 8)
    plain, compiled = (Unrolled(model(simulated("matvec", 16, 12))) for _ in range(2))
    graphs: list[set[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append({node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"})
        return graph.forward

    torch.compiler.reset()
    run = torch.compile(compiled, backend=backend)
    for _ in range(2):
        losses = [net(x).square().sum() for net in (plain, run)]
        for loss in losses:
            loss.backward()
    torch.testing.assert_close(*losses)
    assert graphs == [{"linear", "tanh"}, {"linear", "tanh"}], "one graph before the device, one after it"
    for ours, theirs in zip(gradients(compiled), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.compiler.reset()


def rank(number: int) -> dict[str, Any]:
    """Train in one of two processes, each with its own chip and half of the batch."""
    device = al.open_device("matvec", in_features=16, out_features=12, seed=number)
    net = nn.parallel.DistributedDataParallel(model(device))
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(x.chunk(2)[number]).square().mean().backward()
        optimizer.step()
    layer = net.module[2]
    return {"controls": layer.controls.detach(), "grad": layer.controls.grad, "programs": device.usage.programs}


@pytest.mark.filterwarnings("ignore")
def test_ddp_uses_one_chip_for_each_rank_and_averages_the_gradients(tmp_path: Path) -> None:
    first, second = in_two_processes(rank, tmp_path)
    assert torch.equal(first["controls"], second["controls"])
    assert torch.equal(first["grad"], second["grad"])
    assert first["programs"] == second["programs"] > 1
    # The result equals that of one process with the whole batch.
    net = model(al.open_device("matvec", in_features=16, out_features=12))
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    layer = net[2]
    assert isinstance(layer, BlackBoxLinear)
    torch.testing.assert_close(layer.controls.detach(), first["controls"])
