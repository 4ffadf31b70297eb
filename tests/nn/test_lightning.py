"""Test a device layer in a training loop by Lightning."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import astralora as al

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # warnings of its own imports
    pytest.importorskip("lightning")
    import lightning

# Warnings of Lightning itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.usefixtures("a_throwaway_global_random_state"),
]

WIDTH, OUTPUTS, BATCH = 8, 4, 16


class Module(lightning.LightningModule):
    """Train a digital layer and a device layer to follow a linear teacher."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUTPUTS))
        for parameter in self.net.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        self.session = al.open_device("slm", in_features=WIDTH, out_features=OUTPUTS, impairments="ideal")
        al.attach(self.net, {"2": self.session})
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        """Return Adam for all parameters, controls included, with a cosine schedule."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    x, teacher = torch.randn(4 * BATCH, 6, generator=generator), torch.randn(6, OUTPUTS, generator=generator) / 3
    return DataLoader(TensorDataset(x, x @ teacher), batch_size=BATCH)


def fit(module: Module, folder: Path, epochs: int, checkpoint: Path | None = None, **options: Any) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_a_module_with_a_device_layer_learns(tmp_path: Path) -> None:
    module = Module()
    layer = module.net[2]
    assert isinstance(layer, al.BlackBoxLinear)
    before = layer.controls.detach().clone()
    fit(module, tmp_path, 20)
    first, last = sum(module.losses[:4]), sum(module.losses[-4:])
    # The model can follow a linear teacher exactly, without noise; 80 steps get close to it.
    assert last < 0.2 * first
    assert not torch.equal(layer.controls, before)


def test_lightning_takes_as_many_operations_as_a_plain_loop(tmp_path: Path) -> None:
    module, own = Module(), Module()
    fit(module, tmp_path, 2)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.02)
    for _ in range(2):
        for number, batch in enumerate(loader()):
            optimizer.zero_grad()
            own.training_step(batch, number).backward()
            optimizer.step()
    assert (module.session.usage.programs, module.session.usage.vectors) == (
        own.session.usage.programs,
        own.session.usage.vectors,
    )


def test_gradient_clipping_and_accumulation_work(tmp_path: Path) -> None:
    module = Module()
    fit(module, tmp_path, 10, gradient_clip_val=1.0, accumulate_grad_batches=2)
    assert sum(module.losses[-4:]) < 0.7 * sum(module.losses[:4])


def test_a_run_resumed_from_a_checkpoint_gives_the_same_result(tmp_path: Path) -> None:
    module = Module()
    trainer = fit(module, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    whole = Module()
    fit(whole, tmp_path, 4)
    resumed = Module()
    fit(resumed, tmp_path, 4, checkpoint=tmp_path / "two.ckpt")
    for ours, theirs in zip(resumed.net.state_dict().values(), whole.net.state_dict().values(), strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs)
