"""Test the accelerator in an ordinary loop of accelerate, and Flora under the trainer of transformers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora.common.errors import ConfigurationError
from astralora.optim import Flora

from ..processes import in_two_processes

accelerate = pytest.importorskip("accelerate")

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def a_fresh_process() -> Iterator[None]:
    """Reset the state that all accelerators of a process share."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    reset = methodcaller("_reset_state")  # accelerate has no public method
    for state in (AcceleratorState, GradientState, PartialState):
        reset(state)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        reset(state)


def accelerator(rank: int | None = 2, parts: int = 4, **options: Any) -> Any:
    return al.optim.FloraAccelerator(
        accumulation_compression_rank=rank, gradient_accumulation_steps=parts, cpu=True, **options
    )


def loop(acc: Any, model: nn.Module, optimizer: Any, scheduler: Any, batches: Batches) -> None:
    """Train as the documentation of accelerate shows."""
    for x, y in batches:
        with acc.accumulate(model):
            acc.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_no_gradient_of_full_size_is_kept_between_micro_batches(net: nn.Sequential, batches: Batches) -> None:
    acc = accelerator()
    model = acc.prepare(net)
    for place, (x, y) in enumerate(batches):
        with acc.accumulate(model):
            acc.backward(nn.functional.mse_loss(model(x), y))
            compressed = [net[place].weight.grad is None for place in (0, 3, 5)]
            assert compressed == [place < 3] * 3, "the last micro-batch of four decompresses them"
    assert not acc.compressor.pending


def test_the_gradients_are_those_of_a_compressor_on_the_mean_loss(net: nn.Sequential, batches: Batches) -> None:
    acc = accelerator(seed=3)
    model = acc.prepare(net)
    for x, y in batches:
        with acc.accumulate(model):
            acc.backward(nn.functional.mse_loss(model(x), y))
    found = gradients(net)
    net.zero_grad()
    compressor = al.optim.GradCompressor(net, rank=2, seed=3)
    acc.compressor.remove()
    for x, y in batches:
        (nn.functional.mse_loss(net(x), y) / 4).backward()
    compressor.release()
    torch.testing.assert_close(found, gradients(net))


@pytest.mark.parametrize("rank", [None, 2])
def test_the_learning_rate_schedule_is_followed(rank: int | None, net: nn.Sequential, batches: Batches) -> None:
    acc = accelerator(rank)
    flora = Flora(net.parameters(), lr=0.1, rank=2, beta1=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(flora, lambda step: [1.0, 0.5, 0.0][step])
    model, optimizer, scheduler = acc.prepare(net, flora, schedule)
    rates, moved = [], []
    for _ in range(2):
        before = weights(net)
        rates.append(flora.param_groups[0]["lr"])
        loop(acc, model, optimizer, scheduler, batches)
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, weights(net), strict=True)))
    assert rates == [0.1, 0.05], "the schedule steps with the optimizer and not with each micro-batch"
    before = weights(net)
    scheduler = None  # the rate stays at the last value, 0
    loop(acc, model, optimizer, scheduler, batches)
    moved.append(not all(torch.equal(a, b) for a, b in zip(before, weights(net), strict=True)))
    assert moved == [True, True, False]


def test_a_single_micro_batch_is_not_compressed(net: nn.Sequential, batches: Batches) -> None:
    found = []
    for rank in (None, 2):
        acc = accelerator(rank, parts=1)
        model = acc.prepare(net)
        net.zero_grad()
        x, y = batches[0]
        with acc.accumulate(model):
            acc.backward(nn.functional.mse_loss(model(x), y))
        found.append(gradients(net))
    torch.testing.assert_close(*found)


def test_without_a_rank_it_trains_as_the_accelerator_of_accelerate(net: nn.Sequential, batches: Batches) -> None:
    import copy

    found = []
    for make in (accelerate.Accelerator, al.optim.FloraAccelerator):
        other = copy.deepcopy(net)
        acc = make(gradient_accumulation_steps=2, cpu=True)
        model, optimizer = acc.prepare(other, torch.optim.SGD(other.parameters(), lr=0.1))
        loop(acc, model, optimizer, None, batches)
        found.append(weights(other))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_gradients_can_be_clipped_by_their_global_norm(net: nn.Sequential, batches: Batches) -> None:
    acc = accelerator()
    model = acc.prepare(net)
    for x, y in batches:
        with acc.accumulate(model):
            acc.backward(nn.functional.mse_loss(model(x), y))
            if acc.sync_gradients:
                acc.clip_grad_norm_(model.parameters(), 1e-3)
    norms = [float(gradient.norm()) for gradient in gradients(net)]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_added_groups_and_unfrozen_parameters_are_trained(net: nn.Sequential, batches: Batches) -> None:
    net[3].requires_grad_(False)
    acc = accelerator()
    flora = Flora(net[:5].parameters(), lr=0.1, rank=2, beta1=0.9)
    model, optimizer = acc.prepare(net, flora)
    loop(acc, model, optimizer, None, batches)
    net[3].requires_grad_(True)
    flora.add_param_group({"params": net[5:].parameters()})
    net.zero_grad()
    before = weights(net)
    for _ in range(2):
        loop(acc, model, optimizer, None, batches)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(net), strict=True))
    assert not acc.compressor.pending


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_unfinished_accumulation_is_saved_and_loaded(net: nn.Sequential, batches: Batches, tmp_path: Path) -> None:
    acc = accelerator()
    model, optimizer = acc.prepare(net, Flora(net.parameters(), lr=0.1, rank=2, beta1=0.9))
    loop(acc, model, optimizer, None, batches)
    # Checkpoints of accelerate do not hold .grad, where small gradients stay: this test compares compressed ones.
    loop(acc, model, optimizer, None, batches[:2])
    acc.save_state(str(tmp_path))
    sums = {place: total.clone() for place, total in acc.compressor.state_dict()["sums"].items()}
    assert len(sums) == 3
    loop(acc, model, optimizer, None, batches[2:])
    acc.load_state(str(tmp_path))
    state = acc.compressor.state_dict()
    assert state["cycle"] == 1
    assert all(torch.equal(state["sums"][place], total) for place, total in sums.items())


def test_back_ends_that_keep_gradients_themselves_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import DistributedType

    monkeypatch.setattr(accelerate.Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigurationError, match="does not work with FSDP, which manages the gradients itself"):
        accelerator()


@pytest.mark.parametrize("options", [{"rank": 0}, {"projection": "sparse"}])
def test_invalid_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        accelerator(**options)


def test_without_accelerate_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'accelerate':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    code = "import astralora as al; from astralora.optim import *; Flora; al.optim.FloraAccelerator()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stderr.strip().splitlines()[-1] == (
        "astralora.common.errors.ConfigurationError: FloraAccelerator needs accelerate, which is not installed; "
        "pip install 'astralora[lowrank]'"
    )


def test_accelerate_is_imported_by_the_accelerator_only() -> None:
    code = (
        "import sys, astralora as al\n"
        "assert 'astralora.optim' not in sys.modules\n"
        "al.optim.Flora, al.optim.GradCompressor, al.optim.fuse_backward\n"
        "assert not {'accelerate', 'transformers', 'bitsandbytes'} & sys.modules.keys()\n"
        "al.optim.FloraAccelerator\n"
        "assert 'accelerate' in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def process(number: int) -> dict[str, Any]:
    """Train as one of two processes on its half of every micro-batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Linear(24, 2))
    acc = accelerator()
    assert acc.use_distributed
    flora = Flora(net.parameters(), lr=0.1, rank=2, beta1=0.9)
    model, optimizer = acc.prepare(net, flora)
    batches = [(torch.randn(6, 8), torch.randn(6, 2)) for _ in range(4)]
    grads: list[Tensor] = []
    flora.register_step_pre_hook(lambda *_: grads.extend(gradients(net)))
    loop(acc, model, optimizer, None, [(x.chunk(2)[number], y.chunk(2)[number]) for x, y in batches])
    return {"weights": weights(net), "grads": grads}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_two_processes_take_the_same_step_as_one(tmp_path: Path) -> None:
    first, second = in_two_processes(process, tmp_path)
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Linear(24, 2))
    batches = [(torch.randn(6, 8), torch.randn(6, 2)) for _ in range(4)]
    acc = accelerator()
    model = acc.prepare(net)
    for x, y in batches:
        with acc.accumulate(model):
            acc.backward(nn.functional.mse_loss(model(x), y))
    torch.testing.assert_close(gradients(net), first["grads"], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("a_throwaway_global_random_state")
def test_the_trainer_of_transformers_trains_a_tiny_opt(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=32,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        dropout=0.0,
    )
    model = transformers.OPTForCausalLM(config)
    text = (torch.arange(64 * 12).view(64, 12) * 3 + torch.arange(64).unsqueeze(1)) % 32
    optimizer = Flora(model.parameters(), lr=0.02, rank=2, beta1=0.8, kappa=20, scale_parameter=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 40)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=5,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=[{"input_ids": line, "labels": line} for line in text],
        optimizers=(optimizer, scheduler),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1
    assert scheduler.last_epoch == 40
    assert optimizer.state[model.model.decoder.layers[0].fc1.weight]["moment"].shape == (32, 2)
