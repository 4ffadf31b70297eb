"""Keep data-parallel processes consistent when the parameters of a model change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..common.errors import ConfigurationError

__all__ = ["from_first_rank", "rewrap", "unwrap"]


def unwrap(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """Return the model itself and its `DistributedDataParallel` wrapper, or None without a wrapper.

    Raises:
        ConfigurationError: the wrapper keeps copies of the parameters in another precision.
    """
    if not isinstance(model, DistributedDataParallel):
        return model, None
    if model.mixed_precision is not None:
        raise ConfigurationError(
            "DistributedDataParallel with mixed_precision keeps copies of parameters that OIALR replaces; "
            "use torch.autocast in its place"
        )
    return model.module, model


def from_first_rank(ddp: DistributedDataParallel | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Replace tensors by the tensors of the first process, and return them.

    The signs of singular vectors differ between machines, so that the processes could not use their own decompositions.
    """
    if ddp is None:
        return tensors
    group = ddp.process_group
    copies = tuple(tensor.contiguous() for tensor in tensors)
    for copy in copies:
        torch.distributed.broadcast(copy, group_src=0, group=group)
    return copies


def rewrap(ddp: DistributedDataParallel) -> None:
    """Register the new parameters of a changed model with its `DistributedDataParallel`, and keep its options.

    The wrapper registers parameters only in ``__init__``, which is therefore called again on the same object.
    """
    comm_hooks: list[tuple[Any, Any]] = list(vars(ddp)["_comm_hooks"])
    module = ddp.module
    options = {
        "device_ids": ddp.device_ids,
        "output_device": ddp.output_device,
        "dim": ddp.dim,
        "forward_sync_buffers": ddp.forward_sync_buffers,
        "process_group": ddp.process_group,
        "find_unused_parameters": ddp.find_unused_parameters,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "bucket_cap_mb": ddp.bucket_bytes_cap / 2**20,
    }
    # Hooks of the user, which __init__ would remove.
    kept = {name: vars(ddp)[name] for name in vars(nn.Module()) if "hook" in name or name == "training"}
    # Deleting the old reducer removes its hooks on unchanged parameters.
    del ddp.reducer, ddp.logger
    ddp.__init__(module, **options)  # type: ignore[misc]
    vars(ddp).update(kept)
    for hook, state in comm_hooks:
        ddp.register_comm_hook(state, hook)
