"""Accumulate gradients in random projections under Hugging Face's accelerate."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..common.extras import require
from .compressor import GradCompressor

__all__ = ["FloraAccelerator"]


class _Absent:
    """Replace `accelerate.Accelerator` if accelerate is not installed; a call raises an error that says so."""

    def __init__(self, *_: Any, **__: Any) -> None:
        require("accelerate", "FloraAccelerator", extra="lowrank")


try:
    from accelerate import Accelerator as _Accelerator
except ModuleNotFoundError as error:
    if error.name != "accelerate":
        raise
    _Accelerator = _Absent

# These split parameters over processes, or run the backward pass themselves.
_UNSUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")


class FloraAccelerator(_Accelerator):  # type: ignore[misc]  # has no annotations
    """Accumulate compressed gradients as an `accelerate.Accelerator`: algorithm 1 of Flora.

    Between the micro-batches of ``with accelerator.accumulate(model):`` no gradient of full size is stored. In a single
    process, at most one gradient exists at a time. The synchronising micro-batch decompresses the gradients into
    ``.grad``, so that clipping, any optimizer and its scheduler work as usual. Several processes average their
    compressed accumulators instead of the gradients. An accumulation of a single micro-batch is not compressed.

    Args:
        *args: arguments of `accelerate.Accelerator`.
        accumulation_compression_rank: rank r of the projections; None accumulates without compression.
        projection: ``"gaussian"`` as published, or ``"orthonormal"``.
        seed: seed of the projections.
        **kwargs: arguments of `accelerate.Accelerator`.

    Attributes:
        compressor: compressor that holds the accumulators, saved and loaded by ``save_state`` and ``load_state``; None
            without compression.

    Raises:
        ConfigurationError: the rank or the projection is not valid, accelerate is not installed, or it uses DeepSpeed,
            FSDP or Megatron, which manage gradients themselves.
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
        if self.distributed_type.name in _UNSUPPORTED:
            raise ConfigurationError(
                f"accumulation_compression_rank does not work with {self.distributed_type.name}, which manages "
                f"the gradients itself; leave it out, or use one process or DistributedDataParallel"
            )
        # Processes average a gradient after its own hooks: then the compressor must wait until the pass is complete.
        compressor.during_backward = not self.use_distributed
        self.register_for_checkpointing(compressor)

    def prepare_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Prepare a model like `accelerate.Accelerator.prepare_model`, and start the compression of its gradients."""
        prepared: nn.Module = super().prepare_model(model, *args, **kwargs)
        if self.compressor is not None:
            self.compressor.watch(prepared)
        return prepared

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Run `accelerate.Accelerator.backward`, accumulate the gradients, and release them in the last micro-batch."""
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
