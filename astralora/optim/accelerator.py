"""An accelerator of Hugging Face that accumulates gradients in random projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from .compressor import GradCompressor

__all__ = ["FloraAccelerator"]


class _Absent:
    """In the place of what accelerators derive from where it is not installed: the name is there, but none is made."""

    def __init__(self, *_: Any, **__: Any) -> None:
        require("accelerate", "FloraAccelerator", extra="lowrank")


try:
    from accelerate import Accelerator as _Accelerator
except ModuleNotFoundError as error:
    if error.name != "accelerate":
        raise
    _Accelerator = _Absent

# Where the parameters of a process are not whole matrices, or backward passes are not its own.
_UNFIT = ("DEEPSPEED", "FSDP", "MEGATRON_LM")


class FloraAccelerator(_Accelerator):  # type: ignore[misc]  # has no annotations
    """A drop-in `accelerate.Accelerator` that keeps accumulated gradients compressed: algorithm 1 of Flora.

    Between the micro-batches of ``with accelerator.accumulate(model):`` no gradient of full size is kept, and in one
    process no more than one is alive. At the synchronising micro-batch they are decompressed, so that clipping, any
    optimizer and its scheduler find them in ``.grad`` as ever. Several processes average their accumulators, which
    are as much smaller than the gradients. An accumulation of a single micro-batch is left as it is.

    Args:
        *args: as for `accelerate.Accelerator`.
        accumulation_compression_rank: r of the projections; None accumulates as ever.
        projection: ``"gaussian"`` as published, or ``"orthonormal"``.
        seed: of the projections.
        **kwargs: as for `accelerate.Accelerator`.

    Attributes:
        compressor: holds the accumulators, and is saved and loaded with ``save_state`` and ``load_state``; None without
            compression.

    Raises:
        ConfigurationError: no such rank or projection, accelerate is not installed, or it is to drive DeepSpeed, FSDP
            or Megatron, which keep gradients themselves.
    """

    def __init__(
        self,
        *args: Any,
        accumulation_compression_rank: int | None = None,
        projection: str = "gaussian",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        compressor = None
        if accumulation_compression_rank is not None:
            compressor = GradCompressor(
                rank=accumulation_compression_rank, projection=projection, seed=seed, during_backward=False
            )
        super().__init__(*args, **kwargs)
        self.compressor = compressor
        if compressor is None:
            return
        if self.distributed_type.name in _UNFIT:
            raise ConfigurationError(
                f"accumulation_compression_rank does not work with {self.distributed_type.name}, which keeps the "
                f"gradients itself; leave it out, or use one process or DistributedDataParallel"
            )
        # Reducing across processes happens after a parameter's own hooks: there, gradients are taken when all are done.
        compressor.during_backward = not self.use_distributed
        self.register_for_checkpointing(compressor)

    def prepare_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """As `accelerate.Accelerator.prepare_model`; the model's gradients are compressed from here on."""
        prepared: nn.Module = super().prepare_model(model, *args, **kwargs)
        if self.compressor is not None:
            self.compressor.watch(prepared)
        return prepared

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """As `accelerate.Accelerator.backward`; afterwards gradients are in the accumulators or, if due, released."""
        compressor = self.compressor
        if compressor is None:
            super().backward(loss, **kwargs)
            return
        compressor.paused = self.sync_gradients and not compressor.pending
        super().backward(loss, **kwargs)
        compressor.absorb()
        if self.sync_gradients and compressor.pending:
            compressor.release(reduce=self._average if self.use_distributed else None)

    def _average(self, total: Tensor) -> Tensor:
        averaged: Tensor = self.reduce(total.contiguous(), reduction="mean")
        return averaged
